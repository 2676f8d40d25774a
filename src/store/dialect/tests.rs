use std::time::{Duration, UNIX_EPOCH};

use proptest::option;
use proptest::prelude::*;

use super::*;

fn metadata(pairs: &[(&str, &str)]) -> Metadata {
    let user = pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    Metadata {
        user,
        ..Metadata::default()
    }
}

fn at(seconds: u64, nanos: u32) -> Option<SystemTime> {
    Some(UNIX_EPOCH + Duration::new(seconds, nanos))
}

#[test]
fn every_dialect_is_read() {
    let s3fs = metadata(&[
        ("mode", "33188"),
        ("uid", "1000"),
        ("gid", "100"),
        ("mtime", "1700000000.123456789"),
        ("atime", "1700000001"),
        ("ctime", "1700000002.5"),
    ]);
    let expected = Attributes {
        kind: Some(FileKind::File),
        mode: Some(0o644),
        uid: Some(1000),
        gid: Some(100),
        rdev: None,
        mtime: at(1_700_000_000, 123_456_789),
        atime: at(1_700_000_001, 0),
        ctime: at(1_700_000_002, 500_000_000),
    };
    assert_eq!(Attributes::from_metadata(&s3fs), expected);

    let rclone = metadata(&[
        ("mode", "100755"),
        ("uid", "0"),
        ("mtime", "2023-11-15T00:13:20.25+02:00"),
        ("atime", "2023-11-14T22:13:20Z"),
        ("rdev", "1abc"),
        ("btime", "2020-01-01T00:00:00Z"),
    ]);
    let rclone = Attributes::from_metadata(&rclone);
    assert_eq!(
        (rclone.kind, rclone.mode),
        (Some(FileKind::File), Some(0o755))
    );
    assert_eq!(
        (rclone.mtime, rclone.atime),
        (at(1_700_000_000, 250_000_000), at(1_700_000_000, 0))
    );
    assert_eq!(
        (rclone.uid, rclone.gid, rclone.rdev),
        (Some(0), None, Some(0x1abc))
    );

    let gsutil = metadata(&[
        ("goog-reserved-posix-mode", "640"),
        ("goog-reserved-posix-uid", "5"),
        ("goog-reserved-posix-gid", "6"),
        ("goog-reserved-file-mtime", "1700000000"),
        ("goog-reserved-file-atime", "1700000003"),
    ]);
    let gsutil = Attributes::from_metadata(&gsutil);
    assert_eq!((gsutil.kind, gsutil.mode), (None, Some(0o640)));
    assert_eq!((gsutil.uid, gsutil.gid), (Some(5), Some(6)));
    assert_eq!(
        (gsutil.mtime, gsutil.atime),
        (at(1_700_000_000, 0), at(1_700_000_003, 0))
    );
}

#[test]
fn what_s3sync_wrote_is_read_where_nobody_else_says_it() {
    let s3sync = [("permissions", "33184"), ("owner", "5"), ("group", "6")];
    let alone = Attributes::from_metadata(&metadata(&s3sync));
    assert_eq!(
        (alone.kind, alone.mode, alone.uid, alone.gid),
        (Some(FileKind::File), Some(0o640), Some(5), Some(6))
    );
    let s3fs = [("mode", "16877"), ("uid", "0"), ("gid", "7")];
    let gsutil = [
        ("goog-reserved-posix-mode", "777"),
        ("goog-reserved-posix-uid", "8"),
    ];
    let beside = [&s3sync[..], &gsutil].concat();
    assert_eq!(Attributes::from_metadata(&metadata(&beside)), alone);
    let beside = [&s3sync[..], &s3fs].concat();
    assert_eq!(
        Attributes::from_metadata(&metadata(&beside)),
        Attributes::from_metadata(&metadata(&s3fs))
    );
    // Names are no numbers.
    let names = metadata(&[("owner", "me"), ("group", "staff")]);
    assert_eq!(Attributes::from_metadata(&names), Attributes::default());
}

#[test]
fn modes_are_told_apart_by_what_makes_sense() {
    let table = [
        ("33188", Some(FileKind::File), Some(0o644)),
        ("16877", Some(FileKind::Directory), Some(0o755)),
        ("41471", Some(FileKind::Symlink), Some(0o777)),
        ("4516", Some(FileKind::Fifo), Some(0o644)),
        ("49645", Some(FileKind::Socket), Some(0o755)),
        ("100644", Some(FileKind::File), Some(0o644)),
        ("0100664", Some(FileKind::File), Some(0o664)),
        ("40755", Some(FileKind::Directory), Some(0o755)),
        ("041777", Some(FileKind::Directory), Some(0o1777)),
        ("120777", Some(FileKind::Symlink), Some(0o777)),
        ("60660", Some(FileKind::BlockDevice), Some(0o660)),
        ("0644", None, Some(0o644)),
        ("755", None, Some(0o755)),
        ("493", None, Some(0o755)),
        ("0", None, Some(0)),
        ("", None, None),
        ("-1", None, None),
        ("rw-r--r--", None, None),
        ("99999999999", None, None),
        ("177777", None, None),
    ];
    for (text, kind, permissions) in table {
        let attributes = Attributes::from_metadata(&metadata(&[("mode", text)]));
        assert_eq!(
            (attributes.kind, attributes.mode),
            (kind, permissions),
            "{text:?}"
        );
    }
}

#[test]
fn a_link_is_one_in_every_dialect() {
    for (name, value) in [
        ("mode", "41471"),
        ("goog-reserved-file-is-symlink", "true"),
        ("--symlink-target", "..%2Fother%20file"),
    ] {
        let metadata = metadata(&[(name, value)]);
        assert_eq!(
            Attributes::from_metadata(&metadata).kind,
            Some(FileKind::Symlink),
            "{name}"
        );
    }
    let beside = metadata(&[("--symlink-target", "..%2Fother%20file")]);
    assert_eq!(
        Attributes::link_target(&beside).as_deref(),
        Some("../other file")
    );
    assert_eq!(Attributes::link_target(&metadata(&[])), None);
}

#[test]
fn garbage_says_nothing() {
    let garbage = metadata(&[
        ("mode", "x"),
        ("uid", "-1"),
        ("gid", "4294967295"),
        ("rdev", "+1"),
        ("mtime", "yesterday"),
        ("atime", "1700000000000000"),
        ("ctime", "1.5e9"),
    ]);
    assert_eq!(Attributes::from_metadata(&garbage), Attributes::default());
    for time in [
        "",
        ".",
        "-",
        "1.x",
        "+1",
        "2023-13-99T00:00:00Z",
        "T+00:00",
        "\u{e9}+00:00",
    ] {
        let attributes = Attributes::from_metadata(&metadata(&[("mtime", time)]));
        assert_eq!(attributes.mtime, None, "{time:?}");
    }
}

#[test]
fn what_is_written_is_what_s3fs_writes() {
    let attributes = Attributes {
        kind: Some(FileKind::Directory),
        mode: Some(0o755),
        uid: Some(1),
        gid: Some(2),
        mtime: at(1_700_000_000, 123_456_789),
        atime: at(1_700_000_001, 0),
        ..Attributes::default()
    };
    let mut map = metadata(&[("owner", "me"), ("ctime", "5"), ("uid", "77")]);
    attributes.write_to(&mut map);
    let expected = metadata(&[
        ("mode", "16877"),
        ("uid", "1"),
        ("gid", "2"),
        ("mtime", "1700000000.123456789"),
        ("atime", "1700000001"),
        ("ctime", "5"),
        ("owner", "me"),
    ]);
    assert_eq!(map, expected);
}

fn any_time() -> impl Strategy<Value = SystemTime> {
    (any::<bool>(), 0..253_402_300_799_u64, 0..1_000_000_000_u32).prop_map(|(past, secs, nanos)| {
        match past {
            // Before 1970, but within what a file system can hold.
            true => UNIX_EPOCH - Duration::new(secs % 6_000_000_000, nanos),
            false => UNIX_EPOCH + Duration::new(secs, nanos),
        }
    })
}

prop_compose! {
    fn any_attributes()(
        kind in proptest::sample::select(&FileKind::ALL[..]),
        said in any::<bool>(),
        mode in 0..=0o7777_u32,
        uid in option::of(0..u32::MAX),
        gid in option::of(0..u32::MAX),
        rdev in option::of(any::<u32>()),
        mtime in option::of(any_time()),
        atime in option::of(any_time()),
        ctime in option::of(any_time()),
    ) -> Attributes {
        // A mode is always written whole.
        let (kind, mode) = if said { (Some(kind), Some(mode)) } else { (None, None) };
        Attributes { kind, mode, uid, gid, rdev, mtime, atime, ctime }
    }
}

/// Metadata of somebody else's, so many bytes of it.
fn foreign(bytes: usize) -> Metadata {
    metadata(&[("foreign", &"x".repeat(bytes))])
}

proptest! {
    #[test]
    fn what_fits_beside_attributes_fits_whatever_they_are(attributes in any_attributes(), attempts in 0..3) {
        let most = (0..2048).rev().find(|bytes| Attributes::fit_beside(&foreign(*bytes)));
        // What is kept for ours is a small part of the whole.
        prop_assert!(most >= Some(1600), "{most:?}");
        let mut metadata = foreign(most.unwrap());
        attributes.write_to(&mut metadata);
        let write = (0..attempts).fold(WriteId::new(), |write, _| write.again());
        prop_assert!(s3::user_metadata_fit(&write.mark(metadata)));
    }

    #[test]
    fn what_is_written_is_read_back(attributes in any_attributes()) {
        let mut map = Metadata::default();
        attributes.write_to(&mut map);
        prop_assert_eq!(Attributes::from_metadata(&map), attributes);
    }

    #[test]
    fn reading_never_panics(name in "(mode|uid|rdev|mtime|atime)", value in any::<String>()) {
        Attributes::from_metadata(&metadata(&[(&name, &value)]));
    }
}
