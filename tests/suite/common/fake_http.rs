//! An HTTP server whose every answer a test writes, down to where it breaks off.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A request as it came in.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path and query, as on the wire.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// What goes back; the connection is closed after it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply(Vec<u8>);

impl Reply {
    /// A whole answer. `Content-Length` is added unless it is among the headers.
    pub(crate) fn new(status: u16, headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Self {
        let body = body.as_ref();
        let mut head = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        Self([head.as_bytes(), body].concat())
    }

    /// One of S3's errors.
    pub(crate) fn error(status: u16, code: &str, message: &str) -> Self {
        let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
        Self::new(status, &[("Content-Type", "application/xml")], body)
    }

    /// Bytes that need not be HTTP.
    pub(crate) fn raw(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    /// The connection is closed without a word.
    pub(crate) fn nothing() -> Self {
        Self::default()
    }

    /// A listing of one page.
    pub(crate) fn empty_listing() -> Self {
        Self::new(200, &[], "<ListBucketResult></ListBucketResult>")
    }
}

/// A running fake. Ends when dropped.
#[derive(Debug)]
pub(crate) struct FakeHttp {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    serving: JoinHandle<()>,
}

impl FakeHttp {
    /// Answers each request with what `answer` makes of it; it is told how many came before.
    ///
    /// The request by which a store's conditions are tried is answered as by one that checks them,
    /// and not shown to the test.
    pub(crate) async fn start(
        answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(answer, true).await
    }

    /// The same, with nothing answered of its own accord.
    pub(crate) async fn start_bare(
        answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve(answer, false).await
    }

    async fn serve(
        answer: impl Fn(usize, &Request) -> Reply + Send + Sync + 'static,
        checks: bool,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let answer = Arc::new(answer);
        let serving = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut socket, _)) = listener.accept().await {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                connections.spawn(async move {
                    let Some(request) = read(&mut socket).await else {
                        return;
                    };
                    if checks && request.target.contains("/.bucketvol/probe-") {
                        let reply = Reply::error(412, "PreconditionFailed", "");
                        let _ = socket.write_all(&reply.0).await;
                        let _ = socket.shutdown().await;
                        return;
                    }
                    let before = {
                        let mut seen = seen.lock();
                        seen.push(request.clone());
                        seen.len() - 1
                    };
                    let _ = socket.write_all(&answer(before, &request).0).await;
                    let _ = socket.shutdown().await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            requests,
            serving,
        }
    }

    /// All requests so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }
}

impl Drop for FakeHttp {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn read(socket: &mut TcpStream) -> Option<Request> {
    let mut bytes: Vec<u8> = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        // What does not speak HTTP (TLS, for one) is answered all the same.
        let odd = bytes.first().is_some_and(|byte| !byte.is_ascii_uppercase());
        if odd || socket.read_buf(&mut bytes).await.ok()? == 0 {
            return Some(Request {
                method: String::new(),
                target: String::new(),
                headers: BTreeMap::new(),
                body: bytes,
            });
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let mut body = bytes.split_off(head + 4);
    while body.len() < length {
        if socket.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some(Request {
        method,
        target,
        headers,
        body,
    })
}
