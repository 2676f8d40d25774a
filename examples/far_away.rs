//! A TCP proxy that puts a server far away: every byte arrives later, and no faster than a line carries it.
//!
//! Delay and rate hold for each connection and each direction by itself. What a connection costs at its
//! beginning is one round trip more, as a handshake would; loss and slow start are not imitated. Two threads
//! carry a direction rather than a runtime's tasks: its timers count in milliseconds, `thread::sleep` does not.
//!
//! It prints `port=NUMBER`, then `ready`, and ends when it is killed.
//!
//! ```text
//! cargo run --example far_away -- --to 127.0.0.1:9000 --delay 7500us --bytes-per-second 90000000
//! ```

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use parking_lot::{Condvar, Mutex};

/// The most that is read at once. At 90 MB/s it is 0.7 ms long: small beside the delays that make sense.
const CHUNK: usize = 64 * 1024;

/// Puts a server far away.
#[derive(Parser)]
struct Arguments {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// The port of 127.0.0.1; 0 takes any free one.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// How much later a byte arrives: half a round trip.
    #[arg(long, value_parser = humantime::parse_duration)]
    delay: Duration,
    /// What one direction of one connection carries.
    #[arg(long)]
    bytes_per_second: NonZeroU64,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, arguments.port))
        .with_context(|| format!("127.0.0.1:{}", arguments.port))?;
    let mut stdout = io::stdout();
    writeln!(stdout, "port={}", listener.local_addr()?.port())?;
    writeln!(stdout, "ready")?;
    stdout.flush()?;

    let line = Line {
        delay: arguments.delay,
        bytes_per_second: arguments.bytes_per_second,
    };
    for near in listener.incoming() {
        let near = near?;
        // A server that is not there closes what was accepted for it.
        if let Ok(far) = TcpStream::connect(arguments.to) {
            connect(&line, near, far)?;
        }
    }
    Ok(())
}

/// Carries both directions of one connection from now on.
fn connect(line: &Line, near: TcpStream, far: TcpStream) -> io::Result<()> {
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let established = Instant::now() + 2 * line.delay;
    for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        let under_way = Arc::new(UnderWay::new(line.clone(), established));
        let sending = Arc::clone(&under_way);
        // What a peer breaks off is its own business: both ends learn of it, nothing else does.
        thread::spawn(move || take_in(from, &sending));
        thread::spawn(move || hand_out(to, &under_way));
    }
    Ok(())
}

/// Reads what comes until its end, or until nobody wants it any more.
fn take_in(mut from: TcpStream, under_way: &UnderWay) {
    loop {
        let mut chunk = vec![0; CHUNK];
        let read = match from.read(&mut chunk) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // A connection that broke ends here like one that was closed.
            other => other.unwrap_or(0),
        };
        chunk.truncate(read);
        if !under_way.put(chunk) || read == 0 {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Read);
}

/// Writes each chunk when it has arrived.
fn hand_out(mut to: TcpStream, under_way: &UnderWay) {
    loop {
        let (arrives, chunk) = under_way.next();
        thread::sleep(arrives.saturating_duration_since(Instant::now()));
        if chunk.is_empty() || to.write_all(&chunk).is_err() {
            break;
        }
        under_way.arrived(chunk.len());
    }
    under_way.close();
    let _ = to.shutdown(Shutdown::Write);
}

/// What both directions of every connection have in common.
#[derive(Clone)]
struct Line {
    delay: Duration,
    bytes_per_second: NonZeroU64,
}

impl Line {
    /// How long the line is busy with so many bytes.
    fn takes(&self, bytes: usize) -> Duration {
        let nanoseconds = bytes as u128 * 1_000_000_000 / u128::from(self.bytes_per_second.get());
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    /// How many bytes fit on it.
    fn holds(&self) -> usize {
        let bytes = u128::from(self.bytes_per_second.get()) * self.delay.as_nanos() / 1_000_000_000;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }
}

/// The bytes of one direction that have set out and not arrived.
struct UnderWay {
    line: Line,
    /// Full when the line is: who sends has to wait then.
    room: usize,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// With the time each arrives at; an empty chunk is the end.
    chunks: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// When the line has sent off everything that was put in.
    free_at: Instant,
    /// Nobody takes out any more.
    closed: bool,
}

impl UnderWay {
    fn new(line: Line, established: Instant) -> Self {
        Self {
            // Some chunks beyond: they go in and out as a whole, and threads wake up late.
            room: line.holds().saturating_add(16 * CHUNK),
            line,
            state: Mutex::new(State {
                chunks: VecDeque::new(),
                bytes: 0,
                free_at: established,
                closed: false,
            }),
            changed: Condvar::new(),
        }
    }

    /// Sends a chunk off as soon as there is room. `false`: nobody waits for it.
    fn put(&self, chunk: Vec<u8>) -> bool {
        let mut state = self.state.lock();
        self.changed.wait_while(&mut state, |state| {
            state.bytes >= self.room && !state.closed
        });
        // A chunk that follows another one waits until that one is off, and none waits for arrivals.
        state.free_at = state.free_at.max(Instant::now()) + self.line.takes(chunk.len());
        state.bytes += chunk.len();
        let arrives = state.free_at + self.line.delay;
        state.chunks.push_back((arrives, chunk));
        self.changed.notify_all();
        !state.closed
    }

    /// The chunk that arrives next, and when.
    fn next(&self) -> (Instant, Vec<u8>) {
        let mut state = self.state.lock();
        loop {
            if let Some(next) = state.chunks.pop_front() {
                return next;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Makes room again.
    fn arrived(&self, bytes: usize) {
        self.state.lock().bytes -= bytes;
        self.changed.notify_all();
    }

    fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}
