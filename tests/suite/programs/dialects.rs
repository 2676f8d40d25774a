//! Objects that other programs left, put by hand in their words: the mount shows what these mean.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::common::mounted::Mounted;
use crate::common::s3::LocalS3;

/// User metadata.
type Said = &'static [(&'static str, &'static str)];

/// A key, what its writer says of it, and what stat says: type and mode in hexadecimal, owner, time.
const OBJECTS: &[(&str, Said, &str)] = &[
    (
        "s3fs",
        &[
            ("mode", "33184"),
            ("uid", "12"),
            ("gid", "34"),
            ("mtime", "1500000000.123456789"),
            ("ctime", "1500000001.5"),
        ],
        "81a0 12:34 1500000000.123456789",
    ),
    (
        "geesefs",
        &[
            ("mode", "33277"),
            ("uid", "1000"),
            ("gid", "100"),
            ("mtime", "1500000002"),
        ],
        "81fd 1000:100 1500000002.000000000",
    ),
    (
        "geesefs-link",
        &[
            ("--symlink-target", "s3fs"),
            ("uid", "3"),
            ("gid", "4"),
            ("mtime", "1500000003"),
        ],
        "a1ff 3:4 1500000003.000000000",
    ),
    (
        "rclone",
        &[
            ("mode", "100664"),
            ("uid", "500"),
            ("gid", "501"),
            ("mtime", "1500000004.987654321"),
            ("atime", "2017-07-14T02:40:04.5Z"),
            ("btime", "2017-07-14T02:40:04Z"),
        ],
        "81b4 500:501 1500000004.987654321",
    ),
    (
        "rclone-zone",
        &[
            ("mode", "100600"),
            ("mtime", "2017-07-14T04:40:05.25+02:00"),
        ],
        "8180 0:0 1500000005.250000000",
    ),
    (
        "rclone-device",
        &[
            ("mode", "20660"),
            ("rdev", "103"),
            ("uid", "0"),
            ("gid", "6"),
            ("mtime", "1500000006"),
        ],
        "21b0 0:6 1500000006.000000000",
    ),
    (
        "gsutil",
        &[
            ("goog-reserved-posix-mode", "751"),
            ("goog-reserved-posix-uid", "77"),
            ("goog-reserved-posix-gid", "88"),
            ("goog-reserved-file-mtime", "1500000007"),
            ("goog-reserved-file-atime", "1500000008"),
        ],
        "81e9 77:88 1500000007.000000000",
    ),
    (
        "gsutil-link",
        &[
            ("goog-reserved-file-is-symlink", "true"),
            ("goog-reserved-file-mtime", "1500000010"),
        ],
        "a1ff 0:0 1500000010.000000000",
    ),
    (
        "s3sync",
        &[
            ("permissions", "33188"),
            ("owner", "21"),
            ("group", "22"),
            ("mtime", "1500000009"),
        ],
        "81a4 21:22 1500000009.000000000",
    ),
];

#[test]
fn an_object_in_each_dialect_shows_what_its_writer_meant() {
    let s3 = LocalS3::start();
    let account = s3.account();
    for (key, metadata, _) in OBJECTS {
        let body = match *key {
            "geesefs-link" => "",
            "gsutil-link" => "gsutil",
            _ => "body",
        };
        account.put_with(key, metadata, body.as_bytes());
    }
    let mut mounted = Mounted::by_root(account, "");
    let stat = |mounted: &Mounted, key: &str| mounted.sh(&format!("stat -c '%f %u:%g %.9Y' {key}"));
    for (key, _, expected) in OBJECTS {
        assert_eq!(stat(&mounted, key), *expected, "{key}");
    }
    assert_eq!(mounted.sh("stat -c %t:%T rclone-device"), "1:3");
    assert_eq!(
        mounted.sh("readlink geesefs-link gsutil-link; cat geesefs-link gsutil-link"),
        "s3fs\ngsutil\nbodybody"
    );
    let accessed = fs::metadata(mounted.path("rclone")).expect("stat");
    assert_eq!(
        (accessed.atime(), accessed.atime_nsec()),
        (1_500_000_004, 500_000_000)
    );

    // Ours are s3fs's words; they count from then on, whatever is beside them.
    mounted.sh("chmod 600 rclone gsutil s3sync; chown 5:6 geesefs gsutil s3sync; touch -h -d @1.5 geesefs-link");
    mounted.remount();
    assert_eq!(
        stat(&mounted, "rclone"),
        "8180 500:501 1500000004.987654321"
    );
    assert_eq!(stat(&mounted, "gsutil"), "8180 5:6 1500000007.000000000");
    assert_eq!(stat(&mounted, "s3sync"), "8180 5:6 1500000009.000000000");
    assert_eq!(stat(&mounted, "geesefs"), "81fd 5:6 1500000002.000000000");
    assert_eq!(stat(&mounted, "geesefs-link"), "a1ff 3:4 1.500000000");
    assert_eq!(mounted.sh("readlink geesefs-link"), "s3fs");
    let kept = account.metadata("rclone");
    assert_eq!(kept["btime"], "2017-07-14T02:40:04Z");
    assert_eq!(kept["mode"], "33152");
}

#[test]
fn metadata_that_are_not_ascii_break_nothing_and_survive_a_chmod() {
    // `café` and a name that Latin-1 has no letters for, as Amazon takes and answers them.
    let notes = [
        ("cafe", "=?UTF-8?B?Y2Fmw6k=?="),
        ("moscow", "=?UTF-8?B?0JzQvtGB0LrQstCw?="),
    ];
    for answers_bytes in [false, true] {
        let s3 = LocalS3::start();
        let account = s3.account();
        let mut metadata = vec![
            ("mode", "33188"),
            ("uid", "1"),
            ("gid", "2"),
            ("mtime", "1500000000"),
        ];
        metadata.extend(notes);
        account.put_with("file", &metadata, b"bytes");
        account.put_with(
            "odd",
            &[
                ("mode", notes[0].1),
                ("uid", notes[1].1),
                ("mtime", notes[0].1),
            ],
            b"bytes",
        );
        let said = account.metadata("file");
        s3.answer_bytes(answers_bytes);
        let mut mounted = Mounted::by_root(account, "");
        assert_eq!(
            mounted.sh("stat -c '%a %u:%g %Y' file; cat file odd"),
            "644 1:2 1500000000\nbytesbytes"
        );
        mounted.sh("chmod 600 file odd; mv file moved");
        mounted.remount();
        assert_eq!(
            mounted.sh("stat -c '%a %u:%g %Y' moved; cat moved odd"),
            "600 1:2 1500000000\nbytesbytes"
        );
        assert_eq!(mounted.sh("stat -c '%a %u:%g' odd"), "600 0:0");
        mounted.sh("echo more >>moved");
        mounted.unmount();
        s3.answer_bytes(false);
        let kept = account.metadata("moved");
        for (name, _) in notes {
            assert_eq!(kept[name], said[name], "bytes: {answers_bytes}");
        }
        assert_eq!(kept["mode"], "33152");
        assert_eq!(account.get("moved").as_deref(), Some(&b"bytesmore\n"[..]));
    }
}
