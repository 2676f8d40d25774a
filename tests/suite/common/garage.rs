//! A garage server of the test's own: an S3 server that others wrote. `scripts/garage.sh` builds it.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::process::{bounded, end, output, wait_for};
use super::s3::{Account, scratch};
use super::tools::built;

/// A one-node garage with one bucket; it ends with the value.
#[derive(Debug)]
pub(crate) struct Garage {
    server: Child,
    account: Account,
    directory: TempDir,
}

impl Garage {
    /// Starts a server on free ports of 127.0.0.1 and waits until its bucket can be written.
    pub(crate) fn start() -> Self {
        let directory = tempfile::Builder::new()
            .prefix("bucketvol-test-garage-")
            .tempdir_in(scratch())
            .expect("a directory for garage");
        let (rpc, api) = two_free_ports();
        let configuration = directory.path().join("garage.toml");
        std::fs::write(
            &configuration,
            configuration_text(directory.path(), rpc, api),
        )
        .expect("the configuration is written");
        // garage refuses secrets that others could read.
        std::fs::set_permissions(&configuration, PermissionsExt::from_mode(0o600))
            .expect("the configuration is private");

        let account = Account {
            endpoint: format!("http://127.0.0.1:{api}"),
            region: "garage".to_owned(),
            bucket: "test-bucket".to_owned(),
            access_key_id: format!("GK{}", &random_hex()[..24]),
            secret_access_key: random_hex() + &random_hex(),
        };
        let log = std::fs::File::create(directory.path().join("log")).expect("a log");
        let binary = binary();
        let mut command = Command::new(&binary);
        command
            .arg("--config")
            .arg(&configuration)
            .args(["server", "--single-node", "--default-bucket"])
            .env("GARAGE_DEFAULT_ACCESS_KEY", &account.access_key_id)
            .env("GARAGE_DEFAULT_SECRET_KEY", &account.secret_access_key)
            .env("GARAGE_DEFAULT_BUCKET", &account.bucket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(shim) = nodelay_shim(&binary) {
            command.env("LD_PRELOAD", shim);
        }
        let server = command.spawn().unwrap_or_else(|e| {
            panic!("{}: {e}; scripts/garage.sh builds it", binary.display());
        });
        let mut garage = Self {
            server,
            account,
            directory,
        };
        garage.wait_until_usable();
        garage
    }

    /// How to reach its bucket.
    pub(crate) fn account(&self) -> &Account {
        &self.account
    }

    fn wait_until_usable(&mut self) {
        let configuration = self.directory.path().join("garage.toml");
        wait_for("garage's bucket", Duration::from_secs(30), || {
            if let Ok(Some(status)) = self.server.try_wait() {
                let log = std::fs::read_to_string(self.directory.path().join("log"));
                panic!("garage ended with {status}: {}", log.unwrap_or_default());
            }
            // The bucket is made after the API has begun to listen, so the API alone proves nothing.
            let mut info = bounded(10, binary());
            info.arg("--config").arg(&configuration);
            output(info.args(["bucket", "info", &self.account.bucket]))
                .status
                .success()
        });
    }
}

impl Drop for Garage {
    fn drop(&mut self) {
        end(&mut self.server, Duration::from_secs(10));
    }
}

fn configuration_text(directory: &Path, rpc: u16, api: u16) -> String {
    let directory = directory.display();
    let secret = random_hex() + &random_hex();
    format!(
        r#"metadata_dir = "{directory}/meta"
data_dir = "{directory}/data"
db_engine = "lmdb"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:{rpc}"
rpc_public_addr = "127.0.0.1:{rpc}"
rpc_secret = "{secret}"

[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:{api}"
"#
    )
}

/// 32 random hexadecimal digits.
fn random_hex() -> String {
    uuid::Uuid::new_v4().simple().to_string()
}

/// Both are held until both are known, so that they differ.
fn two_free_ports() -> (u16, u16) {
    let bind = || TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let (first, second) = (bind(), bind());
    let port = |l: &TcpListener| l.local_addr().expect("the port").port();
    (port(&first), port(&second))
}

/// Where `scripts/garage.sh` puts it; `BUCKETVOL_GARAGE` names another one.
fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("BUCKETVOL_GARAGE") {
        return named.into();
    }
    built("garage", "2.5.0")
}

/// garage leaves Nagle's algorithm on, so every small answer waits 40 ms; the shim sets TCP_NODELAY.
fn nodelay_shim(garage: &Path) -> Option<PathBuf> {
    let shim = garage.parent()?.parent()?.join("lib/nodelay.so");
    shim.exists().then_some(shim)
}
