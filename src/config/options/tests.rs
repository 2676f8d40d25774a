//! Tables over every key: what it accepts, what it refuses, and what it says then.

use proptest::prelude::*;

use super::*;

fn pairs(said: &[(&str, &str)]) -> Vec<(String, String)> {
    said.iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn parse(said: &[(&str, &str)]) -> Result<Options, OptionError> {
    Options::parse(pairs(said), Scope::Volume, None)
}

/// Options of a mount of `s3://photos` with these.
fn mount(said: &[(&str, &str)]) -> Result<Options, OptionError> {
    Options::parse(
        pairs(said),
        Scope::Mount,
        Some(Location::parse("s3://photos").unwrap()),
    )
}

fn refusal(said: &[(&str, &str)]) -> String {
    let error = parse(said).expect_err(&format!("{said:?}")).to_string();
    assert!(
        !error.contains('\n') && error.len() < 600,
        "one line: {error}"
    );
    error
}

#[test]
fn nothing_but_a_bucket_gives_the_documented_defaults() {
    let options = parse(&[("bucket", "photos")]).unwrap();
    assert_eq!(
        options,
        Options::at(Location::parse("s3://photos").unwrap())
    );
    assert_eq!(
        options.ownership,
        Ownership {
            uid: 0,
            gid: 0,
            file_mode: 0o644,
            dir_mode: 0o755
        }
    );
    assert_eq!(
        options.transfer,
        Transfer {
            part_size: 8 << 20,
            concurrency: 64
        }
    );
    assert_eq!(options.metadata_ttl, Some(Duration::from_secs(1)));
    assert_eq!(options.fsync_timeout, Duration::from_secs(60));
    assert_eq!(options.size, None);
    assert!(options.check && !options.read_only && !options.allow_overlap);
    assert!(options.endpoint.tls_verify && !options.endpoint.path_style);
    assert_eq!(options.credentials, CredentialSource::Default);
    assert_eq!(
        options.write,
        WriteOptions {
            durability: Durability::Fsync,
            upload_delay: Duration::from_millis(100),
            max_dirty_age: Duration::from_secs(30),
            conflicts: Conflicts::KeepBoth,
        }
    );
    assert_eq!(options.host.cache_memory, 256 << 20);
    assert_eq!(options.host.staging_limit, 20 << 30);
    assert_eq!(options.host.min_free, MinFree::Percent(10));
}

#[test]
fn every_key_and_alias_lands_where_it_belongs() {
    type Holds = fn(&Options) -> bool;
    let table: &[(&str, &str, Holds)] = &[
        ("endpoint", "https://h", |o| {
            o.endpoint.url.as_deref() == Some("https://h")
        }),
        ("endpoint_url", "h:9", |o| {
            o.endpoint.url.as_deref() == Some("https://h:9")
        }),
        ("region", "eu-1", |o| {
            o.endpoint.region.as_deref() == Some("eu-1")
        }),
        ("path_style", "true", |o| o.endpoint.path_style),
        ("force_path_style", "", |o| o.endpoint.path_style),
        ("use_path_request_style", "1", |o| o.endpoint.path_style),
        ("tls_verify", "false", |o| !o.endpoint.tls_verify),
        ("credentials", "file:prod", |o| {
            o.credentials == CredentialSource::File("prod".into())
        }),
        ("ro", "", |o| o.read_only),
        ("ro", "false", |o| !o.read_only),
        ("rw", "", |o| !o.read_only),
        ("rw", "false", |o| o.read_only),
        ("uid", "1000", |o| o.ownership.uid == 1000),
        ("gid", "1000", |o| o.ownership.gid == 1000),
        ("file_mode", "0600", |o| o.ownership.file_mode == 0o600),
        ("dir_mode", "700", |o| o.ownership.dir_mode == 0o700),
        ("umask", "077", |o| {
            (o.ownership.file_mode, o.ownership.dir_mode) == (0o600, 0o700)
        }),
        ("metadata_ttl", "0", |o| {
            o.metadata_ttl == Some(Duration::ZERO)
        }),
        ("exclusive", "", |o| o.metadata_ttl.is_none()),
        ("size", "10GiB", |o| o.size == Some(10 << 30)),
        ("xattr", "", |o| o.xattr == Some(true)),
        ("fsync_timeout", "500ms", |o| {
            o.fsync_timeout == Duration::from_millis(500)
        }),
        ("durability", "local", |o| {
            o.write.durability == Durability::Local
        }),
        ("upload_delay", "0", |o| o.write.upload_delay.is_zero()),
        ("max_dirty_age", "5m", |o| {
            o.write.max_dirty_age == Duration::from_secs(300)
        }),
        ("conflicts", "overwrite", |o| {
            o.write.conflicts == Conflicts::Overwrite
        }),
        ("part_size", "16MiB", |o| o.transfer.part_size == 16 << 20),
        ("concurrency", "1", |o| o.transfer.concurrency == 1),
        ("check", "no", |o| !o.check),
        ("overlap", "allow", |o| o.allow_overlap),
        ("cache_memory", "1GiB", |o| o.host.cache_memory == 1 << 30),
        ("cache_disk", "10GiB", |o| o.host.cache_disk == 10 << 30),
        ("cache_disk", "0", |o| o.host.cache_disk == 0),
        ("staging_limit", "1GiB", |o| o.host.staging_limit == 1 << 30),
        ("min_free", "1GiB", |o| {
            o.host.min_free == MinFree::Bytes(1 << 30)
        }),
        ("min_free", "5%", |o| o.host.min_free == MinFree::Percent(5)),
        ("state_dir", "/x", |o| o.host.state_dir == Some("/x".into())),
        ("cache_dir", "/x", |o| o.host.cache_dir == Some("/x".into())),
        ("ca_cert", "/x.pem", |o| {
            o.host.ca_cert == Some("/x.pem".into())
        }),
    ];
    for (key, value, holds) in table {
        let options = mount(&[(key, value)]).unwrap_or_else(|e| panic!("{key}={value}: {e}"));
        assert!(holds(&options), "{key}={value}: {options:?}");
    }
    let elsewhere = [
        "bucket",
        "prefix",
        "url",
        "access_key_id",
        "secret_access_key",
        "session_token",
    ];
    for spec in KEYS {
        let here =
            table.iter().any(|(key, ..)| *key == spec.name) || elsewhere.contains(&spec.name);
        assert!(here, "{} has no row", spec.name);
    }
}

#[test]
fn a_place_is_said_by_bucket_and_prefix_or_by_one_url() {
    for (said, place) in [
        (
            &[("bucket", "photos"), ("prefix", "/2026/")][..],
            "s3://photos/2026",
        ),
        (&[("url", "s3://photos/2026")], "s3://photos/2026"),
        (&[("url", "memory://x")], "memory://x"),
        (&[("url", "file:///srv/x")], "file:///srv/x"),
    ] {
        assert_eq!(parse(said).unwrap().location.to_string(), place);
    }
    assert_eq!(
        parse(&[("bucket", "photos"), ("prefix", "a?b#c")])
            .unwrap()
            .location
            .prefix,
        "a?b#c"
    );
}

#[test]
fn the_oss_plugins_own_command_line_works_as_it_is() {
    let options = parse(&[
        ("bucket", "b-1"),
        ("ak_id", "LTAI"),
        ("ak_secret", "hunter2"),
        ("url", "vpc100-oss-cn-hangzhou.aliyuncs.com"),
    ])
    .unwrap();
    assert_eq!(options.location.to_string(), "s3://b-1");
    let url = "https://vpc100-oss-cn-hangzhou.aliyuncs.com";
    assert_eq!(options.endpoint.url.as_deref(), Some(url));
    assert_eq!(options.endpoint.region.as_deref(), Some("cn-hangzhou"));
    assert!(
        !options.endpoint.path_style,
        "OSS takes virtual-hosted requests only"
    );
    let CredentialSource::Inline(key) = &options.credentials else {
        panic!("inline")
    };
    assert_eq!(
        (
            key.access_key_id.as_str(),
            key.secret_access_key.expose_secret()
        ),
        ("LTAI", "hunter2")
    );
}

#[test]
fn requests_are_path_style_where_the_store_or_the_name_needs_it() {
    for (bucket, endpoint, path_style) in [
        ("photos", None, false),
        ("my.photos", None, true),
        ("Old_Bucket", None, true),
        (
            "photos",
            Some("https://s3.eu-central-1.amazonaws.com"),
            false,
        ),
        ("photos", Some("https://minio:9000"), true),
        (
            "photos",
            Some("https://oss-cn-hangzhou.aliyuncs.com"),
            false,
        ),
    ] {
        let mut said = vec![("bucket", bucket)];
        said.extend(endpoint.map(|url| ("endpoint", url)));
        assert_eq!(
            parse(&said).unwrap().endpoint.path_style,
            path_style,
            "{bucket} at {endpoint:?}"
        );
    }
    let error = refusal(&[("bucket", "Old_Bucket"), ("path_style", "false")]);
    assert!(error.contains("say path_style=true"), "{error}");
}

#[test]
fn an_unknown_key_is_told_the_nearest_one_and_its_value_is_not_repeated() {
    for (key, near) in [
        ("buket", "bucket"),
        ("Bucket", "bucket"),
        ("part-size", "part_size"),
        ("secret_acess_key", "secret_access_key"),
        ("endpont", "endpoint"),
        ("file_mod", "file_mode"),
        ("ak_sceret", "ak_secret"),
    ] {
        let error = refusal(&[("bucket", "photos"), (key, "hunter2")]);
        assert!(
            error.contains(&format!("unknown option {key:?}: did you mean {near:?}?")),
            "{error}"
        );
        assert!(!error.contains("hunter2"), "{error}");
    }
    let long = "x".repeat(10_000);
    assert!(refusal(&[(&long, "")]).contains("unknown option"));
    assert!(refusal(&[("a\0\n", "")]).contains("unknown option"));
}

#[test]
fn a_bad_value_names_key_value_and_what_is_accepted() {
    for (key, value, says) in [
        (
            "path_style",
            "maybe",
            "option path_style=\"maybe\": accepted is true or false",
        ),
        ("tls_verify", "2", "accepted is true or false"),
        ("ro", "x", "accepted is true or false"),
        ("rw", "x", "accepted is true or false"),
        ("check", "x", "accepted is true or false"),
        ("exclusive", "x", "accepted is true or false"),
        ("xattr", "x", "accepted is true or false"),
        ("size", "0", "a size of at least 4KiB"),
        ("size", "some", "a size of at least 4KiB"),
        (
            "uid",
            "root",
            "option uid=\"root\": accepted is a numeric user id",
        ),
        ("uid", "4294967295", "numeric user id"),
        ("uid", "-1", "numeric user id"),
        ("gid", "", "numeric group id"),
        ("gid", "+1", "numeric group id"),
        ("file_mode", "rw", "octal permissions"),
        ("dir_mode", "7777", "octal permissions"),
        ("umask", "9", "octal permissions"),
        ("metadata_ttl", "soon", "a time span"),
        ("fsync_timeout", "0", "from 100ms to 1day"),
        ("fsync_timeout", "2days", "from 100ms to 1day"),
        ("durability", "none", "close, fsync or local"),
        ("upload_delay", "2days", "up to 1day"),
        (
            "upload_delay",
            "1m",
            "max_dirty_age (30s) contradict each other",
        ),
        ("max_dirty_age", "99ms", "contradict each other"),
        ("conflicts", "last", "keep-both, fail or overwrite"),
        (
            "part_size",
            "4MiB",
            "option part_size=\"4MiB\": accepted is a size from 5MiB to 5GiB",
        ),
        ("part_size", "6GiB", "from 5MiB to 5GiB"),
        ("concurrency", "0", "from 1 to 1024"),
        ("concurrency", "1025", "from 1 to 1024"),
        ("overlap", "yes", "allow or refuse"),
        ("region", "", "a region's name"),
        ("region", "eu west", "a region's name"),
        ("endpoint", "ftp://x", "http:// or https://"),
        ("endpoint", "", "not a URL or host name"),
        ("credentials", "imds", "imds is not supported yet"),
        ("credentials", "", "accepted is env, file:NAME"),
        ("prefix", "a/../b", "'..' are refused"),
        ("prefix", "a\0b", "control characters"),
        ("access_key_id", "", "accepted is an access key's id"),
        (
            "secret_access_key",
            "",
            "option secret_access_key: accepted is the secret",
        ),
        (
            "session_token",
            "",
            "option session_token: accepted is the token",
        ),
    ] {
        let error = refusal(&[("bucket", "photos"), (key, value)]);
        assert!(
            error.contains(says) && error.contains(key),
            "{key}={value}: {error}"
        );
    }
    for (key, value) in [
        ("cache_memory", "1"),
        ("cache_memory", "x"),
        ("state_dir", "x"),
        ("cache_dir", "x"),
        ("cache_disk", "1MiB"),
        ("staging_limit", "1MiB"),
        ("min_free", "100%"),
        ("min_free", "+5%"),
        ("min_free", "1.5%"),
        ("ca_cert", ""),
    ] {
        let error = mount(&[(key, value)]).expect_err(key).to_string();
        assert!(error.starts_with(&format!("option {key}=")), "{error}");
    }
    for bucket in ["", "a", "-ab", "a/b", "..", "a\0b", "büro"] {
        assert!(
            refusal(&[("bucket", bucket)]).contains("bucket"),
            "{bucket}"
        );
    }
}

#[test]
fn contradictions_are_refused_with_both_keys() {
    for (said, says) in [
        (&[][..], "no bucket: say bucket=NAME"),
        (&[("prefix", "x")], "no bucket"),
        (
            &[("bucket", "photos"), ("url", "s3://photos")],
            "bucket and url contradict",
        ),
        (
            &[("bucket", "photos"), ("url", "memory://x")],
            "bucket and url contradict",
        ),
        (
            &[("bucket", "photos"), ("url", "h"), ("endpoint", "h")],
            "endpoint and url",
        ),
        (
            &[("url", "s3://photos"), ("prefix", "x")],
            "url and prefix contradict",
        ),
        (&[("url", "oss://photos")], "not supported yet"),
        (&[("url", "minio:9000")], "is not a URL"),
        (
            &[("bucket", "photos"), ("bucket", "other")],
            "bucket is said twice",
        ),
        (
            &[
                ("bucket", "photos"),
                ("endpoint", "a"),
                ("endpoint_url", "b"),
            ],
            "endpoint is said twice",
        ),
        (
            &[
                ("bucket", "photos"),
                ("exclusive", ""),
                ("metadata_ttl", "1"),
            ],
            "exclusive and metadata_ttl",
        ),
        (&[("bucket", "photos"), ("ro", ""), ("rw", "")], "ro and rw"),
        (
            &[("bucket", "photos"), ("ro", "no"), ("rw", "no")],
            "ro and rw",
        ),
        (
            &[("bucket", "photos"), ("umask", "022"), ("file_mode", "644")],
            "umask and file_mode",
        ),
        (
            &[("bucket", "photos"), ("umask", "022"), ("dir_mode", "755")],
            "umask and file_mode or dir_mode",
        ),
        (
            &[("bucket", "photos"), ("access_key_id", "AK")],
            "belong together",
        ),
        (
            &[("bucket", "photos"), ("secret_access_key", "hunter2")],
            "belong together",
        ),
        (
            &[("bucket", "photos"), ("session_token", "hunter2")],
            "belong together",
        ),
        (
            &[
                ("bucket", "photos"),
                ("credentials", "env"),
                ("access_key_id", "AK"),
                ("secret_access_key", "hunter2"),
            ],
            "credentials and an inline key",
        ),
        (
            &[("url", "memory://x"), ("endpoint", "h")],
            "endpoint means nothing to memory://x",
        ),
        (
            &[("url", "file:///x"), ("credentials", "env")],
            "credentials means nothing to file:///x",
        ),
    ] {
        let error = refusal(said);
        assert!(error.contains(says), "{said:?}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    for key in ["bucket", "prefix", "url"] {
        let error = mount(&[(key, "photos")]).expect_err(key).to_string();
        assert!(error.contains("contradicts the URL s3://photos"), "{error}");
    }
    assert!(
        parse(&[
            ("bucket", "photos"),
            ("endpoint", "a"),
            ("endpoint_url", "a")
        ])
        .is_ok()
    );
    assert!(
        parse(&[("bucket", "photos"), ("ro", ""), ("rw", "no")])
            .unwrap()
            .read_only
    );
}

#[test]
fn a_volumes_creator_must_not_name_host_paths_or_memory() {
    for (key, instead) in [
        ("cache_memory", "serve --cache-memory"),
        ("cache_disk", "serve --cache-disk"),
        ("staging_limit", "serve --staging-limit"),
        ("min_free", "serve --min-free"),
        ("state_dir", "serve --state-dir"),
        ("cache_dir", "serve --cache-dir"),
        ("ca_cert", "certificate store"),
    ] {
        let error = refusal(&[("bucket", "photos"), (key, "/x")]);
        assert!(
            error.contains("only the host's operator") && error.contains(instead),
            "{error}"
        );
    }
}

#[test]
fn no_secret_of_a_bad_option_is_repeated() {
    for said in [
        &[("url", "s3://AKIA:hunter2@photos")][..],
        &[("bucket", "photos"), ("endpoint", "https://AKIA:hunter2@h")],
        &[("bucket", "photos"), ("url", "https://AKIA:hunter2@h")],
        &[
            ("bucket", "photos"),
            ("access_key_id", "AK"),
            ("secret_access_key", "hunter2\n"),
        ],
        &[
            ("bucket", "photos"),
            ("ak_id", "AK"),
            ("ak_secret", "hunter2 "),
        ],
        &[
            ("bucket", "photos"),
            ("ak_secret", "hunter2"),
            ("secret_access_key", "hunter2x"),
        ],
        &[("bucket", "photos"), ("credentials", "AKIA:hunter2")],
    ] {
        let error = refusal(said);
        assert!(
            !error.contains("hunter2") && !error.contains("AKIA"),
            "{error}"
        );
    }
}

#[test]
fn secrets_are_split_from_what_a_record_may_hold() {
    let (public, secret) = split_secrets(pairs(&[
        ("bucket", "b"),
        ("ak_id", "AK"),
        ("ak_secret", "s"),
        ("session_token", "t"),
    ]));
    assert_eq!(public.into_keys().collect::<Vec<_>>(), ["ak_id", "bucket"]);
    assert_eq!(
        secret.into_keys().collect::<Vec<_>>(),
        ["ak_secret", "session_token"]
    );
}

#[test]
fn canonical_pairs_hold_no_secret_and_give_the_same_options_again() {
    for said in [
        &[("bucket", "photos")][..],
        &[
            ("bucket", "photos"),
            ("prefix", "a?b"),
            ("ro", ""),
            ("umask", "027"),
            ("uid", "5"),
        ],
        &[
            ("bucket", "b-1"),
            ("ak_id", "AK"),
            ("ak_secret", "hunter2"),
            ("url", "oss-cn-x.aliyuncs.com"),
        ],
        &[
            ("bucket", "photos"),
            ("access_key_id", "AK"),
            ("secret_access_key", "s"),
            ("session_token", "t"),
        ],
        &[
            ("url", "memory://x/y"),
            ("exclusive", ""),
            ("xattr", "yes"),
            ("size", "10G"),
            ("check", "no"),
            ("overlap", "allow"),
        ],
        &[
            ("url", "file:///x"),
            ("metadata_ttl", "1500ms"),
            ("fsync_timeout", "5"),
            ("durability", "close"),
            ("upload_delay", "1m"),
            ("max_dirty_age", "1h"),
            ("conflicts", "fail"),
            ("part_size", "5000001k"),
        ],
        &[
            ("bucket", "photos"),
            ("endpoint", "http://h:1"),
            ("path_style", "no"),
            ("region", "x"),
            ("tls_verify", "0"),
        ],
        &[
            ("bucket", "photos"),
            ("credentials", "profile:a b"),
            ("concurrency", "7"),
            ("gid", "9"),
        ],
    ] {
        let options = match parse(said) {
            Ok(options) => options,
            Err(error) => panic!("{said:?}: {error}"),
        };
        let public = options.to_pairs();
        assert!(public.values().all(|value| !value.contains("hunter2")));
        let again = public.into_iter().chain(options.inline_pairs());
        assert_eq!(
            Options::parse(again, Scope::Volume, None),
            Ok(options),
            "{said:?}"
        );
    }
    let said = [
        ("cache_memory", "1GiB"),
        ("state_dir", "/s"),
        ("cache_dir", "/c"),
        ("cache_disk", "100MiB"),
        ("staging_limit", "9MiB"),
        ("min_free", "7%"),
        ("ca_cert", "/c"),
        ("dir_mode", "0"),
    ];
    let options = mount(&said).unwrap();
    assert_eq!(
        Options::parse(options.to_pairs(), Scope::Mount, None),
        Ok(options)
    );
}

#[test]
fn the_document_of_the_options_is_the_table() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPTIONS.md");
    if std::env::var_os("BUCKETVOL_BLESS").is_some() {
        std::fs::write(path, Options::help_markdown()).unwrap();
    }
    let document = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        document == Options::help_markdown(),
        "docs/OPTIONS.md is stale: BUCKETVOL_BLESS=1 cargo test the_document_of_the_options"
    );
}

#[test]
fn the_help_names_every_key_the_speaker_may_say() {
    let (volume, mount) = (
        Options::help_table(Scope::Volume),
        Options::help_table(Scope::Mount),
    );
    for spec in KEYS {
        let row = format!("  {}", spec.name);
        assert_eq!(
            mount.contains(&row),
            spec.may_be_said(Scope::Mount),
            "{}",
            spec.name
        );
        assert_eq!(
            volume.contains(&row),
            spec.may_be_said(Scope::Volume),
            "{}",
            spec.name
        );
        assert!(
            !spec.help.is_empty() && !spec.accepts.is_empty(),
            "{}",
            spec.name
        );
    }
}

fn any_key() -> impl Strategy<Value = String> {
    let names: Vec<String> = KEYS
        .iter()
        .flat_map(|spec| std::iter::once(spec.name).chain(spec.aliases.iter().copied()))
        .map(String::from)
        .collect();
    prop_oneof![8 => proptest::sample::select(names), 1 => any::<String>()]
}

fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just("true".to_owned()),
        Just("photos".to_owned()),
        Just("s3://photos/x".to_owned()),
        Just("10MiB".to_owned()),
        Just("https://h:9000".to_owned()),
        "[0-9]{1,6}",
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn arbitrary_pairs_never_panic_and_what_is_accepted_survives_a_record(
        said in proptest::collection::vec((any_key(), any_value()), 0..6),
    ) {
        for scope in [Scope::Volume, Scope::Mount] {
            if let Ok(options) = Options::parse(said.clone(), scope, None) {
                let again = options.to_pairs().into_iter().chain(options.inline_pairs());
                prop_assert_eq!(Options::parse(again, scope, None), Ok(options));
            }
        }
    }
}
