//! Servers with the entrypoints that their official images have: root gives the volume to the server's user, who goes on
//! as that and makes the directory his alone.
//!
//! No registry is asked: the programs are this machine's, and the images hold what else there is in one, directories
//! that docker copies to a new volume among it.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::Duration;

use crate::common::daemon::Daemon;
use crate::common::dockerd::Dockerd;
use crate::common::process::{bounded, cannot_run, output, succeed, wait_for};
use crate::common::s3::LocalS3;

/// A server as its image has it.
struct Image {
    name: &'static str,
    /// The directory that the volume is mounted at, and its mode in the image.
    directory: (&'static str, u32),
    environment: &'static str,
    entrypoint: &'static str,
    /// Programs of this machine that it needs.
    needs: &'static [&'static str],
    /// Puts a number into it; fails while the server is not up.
    put: fn(u32) -> String,
    /// The numbers that are in it, a line each.
    list: &'static str,
}

/// The user of every server, as in the images of Debian.
const USER: u32 = 999;

const POSTGRES: Image = Image {
    name: "postgres",
    directory: ("/var/lib/postgresql/data", 0o1777),
    environment: "PGDATA=/var/lib/postgresql/data",
    entrypoint: r#"
        PATH=$(echo /usr/lib/postgresql/*/bin):$PATH
        if [ "$(id -u)" = 0 ]; then
            mkdir -p "$PGDATA"; chmod 00700 "$PGDATA"
            find "$PGDATA" \! -user postgres -exec chown postgres '{}' +
            exec setpriv --reuid=postgres --regid=postgres --clear-groups "$0"
        fi
        mkdir -p "$PGDATA"; chmod 00700 "$PGDATA"
        if [ ! -s "$PGDATA/PG_VERSION" ]; then
            initdb --username=postgres --auth=trust --no-instructions
            # Where nobody else looks: whoever waits for the server must not take this one for it.
            mkdir /tmp/init
            pg_ctl -D "$PGDATA" -o "-c listen_addresses='' -k /tmp/init" -w start
            psql -h /tmp/init -U postgres -v ON_ERROR_STOP=1 -c 'CREATE TABLE numbers (n int)'
            pg_ctl -D "$PGDATA" -m fast -w stop
            # A key that others may read is refused.
            openssl req -new -x509 -nodes -subj /CN=test -keyout "$PGDATA/server.key" -out "$PGDATA/server.crt"
            chmod 0600 "$PGDATA/server.key"
        fi
        exec postgres -c ssl=on -c listen_addresses= -k /tmp"#,
    needs: &["/usr/lib/postgresql", "/usr/bin/openssl"],
    put: |n| format!("psql -h /tmp -U postgres -c 'INSERT INTO numbers VALUES ({n})'"),
    list: "psql -h /tmp -U postgres -Atc 'SELECT n FROM numbers ORDER BY n'",
};

const REDIS: Image = Image {
    name: "redis",
    directory: ("/data", 0o755),
    environment: "",
    // Debian has the server's program under another name where the service is not installed.
    entrypoint: r#"
        cd /data
        if [ "$(id -u)" = 0 ]; then
            find . \! -user redis -exec chown redis '{}' +
            exec setpriv --reuid=redis --regid=redis --clear-groups "$0"
        fi
        umask 0077
        exec -a redis-server redis-check-rdb --port 0 --unixsocket /tmp/redis --appendonly yes \
            --appendfsync always --save 1 1"#,
    needs: &["/usr/bin/redis-check-rdb"],
    put: |n| format!("redis-cli -s /tmp/redis rpush numbers {n} | grep -q '^[0-9]'"),
    list: "redis-cli -s /tmp/redis lrange numbers 0 -1",
};

const MARIADB: Image = Image {
    name: "mysql",
    directory: ("/var/lib/mysql", 0o777),
    environment: "",
    entrypoint: r#"
        if [ "$(id -u)" = 0 ]; then
            find /var/lib/mysql \! -user mysql -exec chown mysql: '{}' +
            exec setpriv --reuid=mysql --regid=mysql --clear-groups "$0"
        fi
        if [ ! -d /var/lib/mysql/mysql ]; then
            mariadb-install-db --no-defaults --datadir=/var/lib/mysql --skip-test-db \
                --auth-root-authentication-method=normal
        fi
        exec mariadbd --no-defaults --datadir=/var/lib/mysql --skip-networking --socket=/tmp/mysql \
            --pid-file=/tmp/pid"#,
    needs: &["/usr/sbin/mariadbd", "/usr/bin/mariadb"],
    put: |n| {
        format!(
            "mariadb --no-defaults -S /tmp/mysql -u root -e 'CREATE DATABASE IF NOT EXISTS d;
             CREATE TABLE IF NOT EXISTS d.numbers (n int); INSERT INTO d.numbers VALUES ({n})'"
        )
    },
    list: "mariadb --no-defaults -S /tmp/mysql -u root -Ne 'SELECT n FROM d.numbers ORDER BY n'",
};

/// How long a server may take to make its files and to come up, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(120);

#[test]
fn postgres_starts_is_killed_and_goes_on_in_another_container() {
    run(&POSTGRES);
}

#[test]
fn redis_starts_is_killed_and_goes_on_in_another_container() {
    run(&REDIS);
}

#[test]
fn mariadb_starts_is_killed_and_goes_on_in_another_container() {
    run(&MARIADB);
}

fn run(image: &Image) {
    if let Some(missing) = image
        .needs
        .iter()
        .find(|path| !fs::exists(path).unwrap_or(false))
    {
        return cannot_run(&format!("{missing} is not there"));
    }
    let (s3, engine) = (LocalS3::start(), Dockerd::start());
    let daemon = Daemon::start(&engine, s3.account());
    import(&engine, image);
    engine.create_volume("bucketvol", "vol", &s3.account().options());

    start(&engine, image, "first");
    put(&engine, image, "first", 1);
    // What it has answered it has.
    engine.docker(&["kill", "first"]);
    engine.docker(&["start", "first"]);
    put(&engine, image, "first", 2);
    engine.docker(&["stop", "--time", "60", "first"]);
    engine.docker(&["rm", "first"]);
    daemon.wait_until_unmounted();

    start(&engine, image, "second");
    put(&engine, image, "second", 3);
    let listed = engine.docker(&["exec", "second", "sh", "-c", &with_path(image.list)]);
    assert_eq!(listed, "1\n2\n3");
    engine.docker(&["rm", "-f", "second"]);
}

fn with_path(script: &str) -> String {
    format!("PATH=$(echo /usr/lib/postgresql/*/bin):$PATH; {script}")
}

fn start(engine: &Dockerd, image: &Image, name: &str) {
    let volume = format!("vol:{}", image.directory.0);
    let environment = format!("--env={}", image.environment);
    let mut arguments = vec!["run", "-d", "--name", name, "--network=none", "-v", &volume];
    arguments.extend([
        "-v",
        "/usr:/usr:ro",
        "-v",
        "/etc/alternatives:/etc/alternatives:ro",
        "-v",
        "/etc/ssl/openssl.cnf:/etc/ssl/openssl.cnf:ro",
    ]);
    if !image.environment.is_empty() {
        arguments.push(&environment);
    }
    arguments.extend([image.name, "/entrypoint"]);
    engine.docker(&arguments);
}

/// When the server is up.
fn put(engine: &Dockerd, image: &Image, container: &str, number: u32) {
    let script = with_path(&(image.put)(number));
    let mut last = None;
    let is_up = || {
        let state = engine.inspect(container, "{{.State.Running}}");
        if state != "true" {
            let said = output(&mut engine.command(&["logs", container]));
            panic!(
                "{} has ended: {}{}",
                image.name,
                String::from_utf8_lossy(&said.stdout),
                String::from_utf8_lossy(&said.stderr)
            );
        }
        let done = output(&mut engine.command(&["exec", container, "sh", "-c", &script]));
        let is_done = done.status.success();
        last = Some(done);
        is_done
    };
    wait_for(image.name, PATIENCE, is_up);
}

/// The image: what is in one beside the programs.
fn import(engine: &Dockerd, image: &Image) {
    let root = engine.namespace().directory().join(image.name);
    let (directory, mode) = image.directory;
    let directory = root.join(directory.trim_start_matches('/'));
    for made in [root.join("etc"), root.join("var/run"), directory.clone()] {
        fs::create_dir_all(made).expect("the image's directories");
    }
    for name in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), root.join(name)).expect("a link");
    }
    let user = image.name;
    let passwd = format!("root:x:0:0::/root:/bin/sh\n{user}:x:{USER}:{USER}::/:/bin/sh\n");
    fs::write(root.join("etc/passwd"), passwd).expect("users");
    fs::write(
        root.join("etc/group"),
        format!("root:x:0:\n{user}:x:{USER}:\n"),
    )
    .expect("groups");
    let entrypoint = format!("#!/bin/bash\nset -eu\n{}\n", image.entrypoint);
    fs::write(root.join("entrypoint"), entrypoint).expect("the entrypoint");
    fs::create_dir(root.join("tmp")).expect("a directory");
    succeed(bounded(20, "chmod").arg("755").arg(root.join("entrypoint")));
    succeed(bounded(20, "chmod").arg("1777").arg(root.join("tmp")));
    succeed(
        bounded(20, "chmod")
            .arg(format!("{mode:o}"))
            .arg(&directory),
    );
    succeed(
        bounded(20, "chown")
            .arg(format!("{USER}:{USER}"))
            .arg(&directory),
    );
    engine.import(image.name, &root);
}
