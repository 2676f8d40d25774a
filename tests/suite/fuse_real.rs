//! A real mount by the `bucketvol` program, used by std::fs and by ordinary programs.
//!
//! Objects are read back by curl, past us. Needs root, /dev/fuse and fusermount3.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use crate::common::mounted::{Mounted, NOBODY};
use crate::common::process::{fail, succeed, wait_for};
use crate::common::s3::{Account, LocalS3};
use crate::common::test_fs::pattern;

/// Makes a test of each body for every server there is to run it against.
macro_rules! against_every_server {
    ($($body:ident),+ $(,)?) => {
        mod in_process {
            use crate::common::s3::LocalS3;
            $(
                #[test]
                fn $body() {
                    super::$body(LocalS3::start().account());
                }
            )+
        }

        #[cfg(feature = "s3-tests")]
        mod garage {
            use crate::common::garage::Garage;
            $(
                #[test]
                fn $body() {
                    super::$body(Garage::start().account());
                }
            )+
        }
    };
}

against_every_server! {
    what_std_fs_writes_is_an_object_soon_after_the_file_is_closed,
    writes_land_anywhere_and_holes_read_as_zeros,
    a_reader_sees_what_a_writer_has_written_so_far,
    an_open_file_outlives_its_name,
    a_directory_moves_with_all_that_is_in_it,
    mode_owner_and_times_survive_a_remount,
    extended_attributes_can_be_left_out,
    a_file_that_somebody_else_changes_lends_nothing_any_more,
    extended_attributes_are_what_programs_expect,
    files_are_copied_by_copy_file_range,
    fallocate_makes_holes_zeros_and_room,
    df_shows_what_a_quota_leaves_and_dd_runs_into_it,
    without_a_quota_df_shows_what_is_used,
    symlinks_are_kept_as_they_are,
    git_clones_into_it_and_fsck_finds_nothing,
    tar_cp_and_sha256sum_agree_before_and_after_a_remount,
    an_ordinary_user_mounts_through_fusermount3,
    the_kernel_checks_permissions_for_other_users_of_a_mount_by_root,
    a_plain_umount_loses_nothing,
    a_mount_point_that_cannot_be_used_is_refused_in_one_line,
    a_handle_keeps_its_place_over_many_small_writes,
    locks_hold_between_processes_of_this_host,
    what_another_host_writes_is_seen_at_the_next_open_after_the_ttl,
    what_one_mount_has_learnt_of_objects_the_next_one_knows,
    what_one_mount_has_read_the_next_one_has_on_the_disk,
    what_waits_is_listed_exported_given_up_and_retried,
}

fn what_std_fs_writes_is_an_object_soon_after_the_file_is_closed(account: &Account) {
    let mounted = Mounted::by_root(account, "inside");
    fs::create_dir_all(mounted.path("a/b")).expect("directories are made");
    fs::write(mounted.path("a/b/file"), b"one").expect("it is written");
    account.becomes("inside/a/b/file", Some(b"one"));

    let mut file = OpenOptions::new()
        .append(true)
        .open(mounted.path("a/b/file"))
        .expect("append");
    file.write_all(b" and two").expect("it is appended");
    file.sync_all().expect("fsync");
    assert_eq!(
        account.get("inside/a/b/file").as_deref(),
        Some(&b"one and two"[..])
    );
    drop(file);

    fs::write(mounted.path("a/b/file"), b"new").expect("O_TRUNC replaces");
    account.becomes("inside/a/b/file", Some(b"new"));
    fs::remove_file(mounted.path("a/b/file")).expect("it is removed");
    account.becomes("inside/a/b/file", None);
    fs::remove_dir(mounted.path("a/b")).expect("an empty directory goes");
    assert_eq!(
        fs::read_dir(mounted.path("a"))
            .expect("its parent stays")
            .count(),
        0
    );
}

fn writes_land_anywhere_and_holes_read_as_zeros(account: &Account) {
    let mut mounted = Mounted::by_root(account, "");
    let file = File::create(mounted.path("f")).expect("create");
    file.write_all_at(b"end", 3_000_000)
        .expect("beyond the end");
    file.write_all_at(b"start", 0).expect("at the start");
    file.write_all_at(b"middle", 1_500_000).expect("in between");
    drop(file);
    mounted.remount();

    let mut expected = vec![0; 3_000_003];
    expected[..5].copy_from_slice(b"start");
    expected[1_500_000..1_500_006].copy_from_slice(b"middle");
    expected[3_000_000..].copy_from_slice(b"end");
    assert!(
        fs::read(mounted.path("f")).expect("read") == expected,
        "the bytes differ"
    );

    let file = OpenOptions::new()
        .write(true)
        .open(mounted.path("f"))
        .expect("open");
    file.write_all_at(b"MIDDLE", 1_500_000)
        .expect("part of an existing object");
    file.set_len(1_500_003).expect("truncate");
    file.set_len(1_500_006).expect("grow again");
    drop(file);
    expected.truncate(1_500_003);
    expected[1_500_000..].copy_from_slice(b"MID");
    expected.extend([0; 3]);
    account.becomes("f", Some(&expected));
}

fn a_reader_sees_what_a_writer_has_written_so_far(account: &Account) {
    let mounted = Mounted::by_root(account, "");
    let mut writer = File::create(mounted.path("log")).expect("create");
    writer.write_all(b"first\n").expect("write");
    let mut reader = File::open(mounted.path("log")).expect("open while it is written");
    let mut seen = String::new();
    reader.read_to_string(&mut seen).expect("read");
    writer.write_all(b"second\n").expect("write");
    reader.read_to_string(&mut seen).expect("read on");
    assert_eq!(seen, "first\nsecond\n");
    assert_eq!(fs::metadata(mounted.path("log")).expect("stat").len(), 13);
}

fn an_open_file_outlives_its_name(account: &Account) {
    let mounted = Mounted::by_root(account, "");
    fs::write(mounted.path("gone"), b"still readable").expect("write");
    let mut open = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mounted.path("gone"))
        .expect("open");
    fs::remove_file(mounted.path("gone")).expect("unlink while open");
    assert!(!mounted.path("gone").exists());
    open.write_all_at(b"STILL", 0)
        .expect("write without a name");
    let mut text = String::new();
    open.read_to_string(&mut text).expect("read without a name");
    assert_eq!(text, "STILL readable");
    drop(open);
    assert_eq!(account.get("gone"), None, "a removed file came back");

    fs::write(mounted.path("old"), b"old bytes").expect("write");
    fs::write(mounted.path("new"), b"new bytes").expect("write");
    let mut open = File::open(mounted.path("old")).expect("open");
    fs::rename(mounted.path("new"), mounted.path("old")).expect("rename over an open file");
    let mut text = String::new();
    open.read_to_string(&mut text)
        .expect("the handle keeps its file");
    assert_eq!(text, "old bytes");
    assert_eq!(fs::read(mounted.path("old")).expect("read"), b"new bytes");
    account.becomes("old", Some(b"new bytes"));
    assert_eq!(account.get("new"), None);
}

fn a_directory_moves_with_all_that_is_in_it(account: &Account) {
    let mut mounted = Mounted::by_root(account, "p");
    mounted.sh("mkdir -p a/b/c; for i in 1 2 3 4 5; do echo $i >a/b/c/$i; done; mkdir a/empty");
    mounted.sh("mv a moved; mkdir deeper; mv moved/b deeper/");
    let expected = "deeper/b/c/1\ndeeper/b/c/2\ndeeper/b/c/3\ndeeper/b/c/4\ndeeper/b/c/5";
    assert_eq!(mounted.sh("find deeper -type f | sort"), expected);
    mounted.remount();
    assert_eq!(mounted.sh("find deeper -type f | sort"), expected);
    assert_eq!(
        mounted.sh("find moved -type d | sort"),
        "moved\nmoved/empty"
    );
    account.becomes("p/deeper/b/c/3", Some(b"3\n"));
    assert_eq!(account.get("p/a/b/c/3"), None);
}

fn mode_owner_and_times_survive_a_remount(account: &Account) {
    let mut mounted = Mounted::by_root(account, "");
    mounted.sh("echo x >file; mkdir dir; ln -s file link
         chown 1234:567 file; chmod 4751 file; touch -d @1000000000.123456789 file
         chmod 1770 dir; chown 5:6 dir");
    let list = "stat -c '%n %a %u:%g' file dir; stat -c '%.9Y' file";
    let expected = "file 4751 1234:567\ndir 1770 5:6\n1000000000.123456789";
    assert_eq!(mounted.sh(list), expected);
    mounted.remount();
    assert_eq!(mounted.sh(list), expected);
    // Writing changes the time and nothing else.
    mounted.sh("echo y >>file");
    mounted.remount();
    assert_eq!(
        mounted.sh("stat -c '%u:%g' file; cat file"),
        "1234:567\nx\ny"
    );
    let modified = fs::metadata(mounted.path("file")).expect("stat").mtime();
    assert!(modified > 1_000_000_000);
}

fn extended_attributes_can_be_left_out(account: &Account) {
    let mounted = Mounted::with(account, "xattr=false");
    let said = mounted.sh("echo x >file
         ! setfattr -n user.a -v 1 file 2>said; cat said; ! getfattr -n user.a file 2>said; cat said");
    assert_eq!(said.matches("Operation not supported").count(), 2, "{said}");
}

/// set-user-ID and set-group-ID, as on any Linux file system.
fn a_file_that_somebody_else_changes_lends_nothing_any_more(account: &Account) {
    let mut mounted = Mounted::by_root(account, "");
    let each = "written truncated emptied extended copied owned";
    mounted.sh(&format!(
        "chmod 755 .; for file in {each} roots; do seq 100 >$file; chmod 6777 $file; done"
    ));
    mounted.sh_as(
        NOBODY,
        "echo more >>written; truncate -s 1 truncated; : >emptied; fallocate -l 1000 extended
         python3 -c 'import os; os.copy_file_range(
             os.open(\"written\", os.O_RDONLY), os.open(\"copied\", os.O_WRONLY), 10)'",
    );
    mounted.sh("chown 1:1 owned; echo more >>roots; truncate -s 9 roots");
    for _ in 0..2 {
        // Who asks for the mode alone may get what the kernel has kept of it, for a second.
        let lending = mounted.sh("find . -type f -perm /6000 ! -name roots");
        assert_eq!(lending, "");
        assert_eq!(mounted.sh("stat -c %a roots"), "6777");
        mounted.remount();
    }
}

fn extended_attributes_are_what_programs_expect(account: &Account) {
    let mut mounted = Mounted::by_root(account, "");
    mounted.sh("mkdir dir; echo x >file; ln -s file link; mkfifo pipe
         setfattr -n user.a -v hello file; setfattr -n user.empty file
         setfattr -n user.dir -v 1 dir; setfattr -n user.root -v 1 .
         for name in trusted.a security.a; do ! setfattr -n $name -v 1 file; done
         for path in link pipe; do ! setfattr -h -n user.a -v 1 $path; done
         ! setfattr -n user.long -v $(head -c 3000 /dev/zero | tr '\\0' x) file
         cp --preserve=xattr file copy; mv file moved; echo y >>moved; chmod 600 moved
         setfattr -x user.empty moved; ! setfattr -x user.empty moved
         tar --xattrs -cf \"$LOCAL/tree.tar\" moved dir; mkdir out; tar --xattrs -C out -xf \"$LOCAL/tree.tar\"");
    let python = "python3 -c 'if True:
        import errno, os
        def fails(code, call, *arguments):
            try: call(*arguments)
            except OSError as error: assert error.errno == code, error
            else: assert False, call
        fails(errno.EEXIST, os.setxattr, \"moved\", \"user.a\", b\"\", os.XATTR_CREATE)
        fails(errno.ENODATA, os.setxattr, \"moved\", \"user.b\", b\"\", os.XATTR_REPLACE)
        fails(errno.ENODATA, os.getxattr, \"moved\", \"user.b\")
        fails(errno.EOPNOTSUPP, os.getxattr, \"moved\", \"security.capability\")
        import ctypes
        libc, room = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(4)
        get = lambda size: libc.getxattr(b\"moved\", b\"user.a\", room, size)
        assert get(0) == 5 and get(4) == -1 and ctypes.get_errno() == errno.ERANGE'";
    mounted.sh(python);
    let list = "getfattr -d moved copy dir out/moved out/dir .";
    let moved = "user.a=\"hello\"\n";
    let expected = [
        ("moved", moved),
        ("copy", "user.a=\"hello\"\nuser.empty=\"\"\n"),
        ("dir", "user.dir=\"1\"\n"),
        ("out/moved", moved),
        ("out/dir", "user.dir=\"1\"\n"),
        (".", "user.root=\"1\"\n"),
    ];
    let expected = expected.map(|(path, list)| format!("# file: {path}\n{list}"));
    for _ in 0..2 {
        assert_eq!(mounted.sh(list).trim_end(), expected.join("\n").trim_end());
        mounted.remount();
    }
}

fn fallocate_makes_holes_zeros_and_room(account: &Account) {
    let mounted = Mounted::by_root(account, "");
    let mut expected = pattern(100_000);
    fs::write(mounted.path("file"), &expected).expect("it is written");
    // What is read before is in the kernel's memory.
    assert!(fs::read(mounted.path("file")).expect("it is read") == expected);
    mounted.sh("fallocate --punch-hole --offset 5000 --length 20000 file");
    expected[5000..25_000].fill(0);
    mounted.sh("fallocate --zero-range --offset 90000 --length 20000 file");
    expected.resize(110_000, 0);
    expected[90_000..].fill(0);
    mounted.sh("fallocate --keep-size --length 1000000 file; fallocate --length 120000 file");
    expected.resize(120_000, 0);
    assert!(fs::read(mounted.path("file")).expect("it is read") == expected);
    account.becomes("file", Some(&expected));
    let refused = fail(&mut mounted.script(
        0,
        "fallocate --collapse-range --offset 4096 --length 4096 file",
    ));
    assert!(refused.contains("not supported"), "{refused}");
}

fn files_are_copied_by_copy_file_range(account: &Account) {
    let mut mounted = Mounted::by_root(account, "");
    let bytes = pattern(5_000_003);
    fs::write(mounted.path("from"), &bytes).expect("write");
    // A source that has to be fetched.
    mounted.remount();
    fs::copy(mounted.path("from"), mounted.path("to")).expect("std copies by copy_file_range");
    assert!(fs::read(mounted.path("to")).expect("read") == bytes);
    let script = "import os
def copies(*arguments): return os.copy_file_range(*arguments)
a, b = os.open('from', os.O_RDONLY), os.open('to', os.O_RDWR)
assert copies(a, b, 5000000, 0, 0) == 1 << 20
assert copies(a, b, 10, 4999999, 2) == 4
assert copies(a, b, 10, 5000003, 0) == 0
assert copies(b, b, 100, 0, 1000) == 100
assert copies(a, b, 3, 0, 5000010) == 3
os.chmod('to', 0o4755)
try: copies(a, a, 1, 0, 10)
except OSError as error: assert error.errno == 9
else: assert False";
    let python = format!("python3 - <<'END'\n{script}\nEND");
    mounted.sh(&python);
    mounted.sh_as(0, "chmod 666 to; chmod u+s to");
    let by_another = "import os; a, b = os.open('from', os.O_RDONLY), os.open('to', os.O_WRONLY)
os.copy_file_range(a, b, 1)";
    mounted.sh_as(NOBODY, &format!("python3 - <<'END'\n{by_another}\nEND"));
    let mode = fs::metadata(mounted.path("to")).expect("stat").mode();
    assert_eq!(mode & 0o7777, 0o666, "setuid goes as with a write");
    let mut expected = bytes.clone();
    expected[2..6].copy_from_slice(&bytes[4_999_999..]);
    expected.copy_within(0..100, 1000);
    expected.resize(5_000_010, 0);
    expected.extend(&bytes[..3]);
    for _ in 0..2 {
        assert!(fs::read(mounted.path("to")).expect("read") == expected);
        mounted.remount();
    }
}

/// Waits until df(1) says so of size, used and available bytes, and of inodes in use.
fn df_becomes(mounted: &Mounted, expected: &str) {
    let df = "df -B1 --output=size,used,avail,iused . | tail -n 1 | tr -s ' ' | sed 's/^ //'";
    let mut said = String::new();
    for _ in 0..500 {
        said = mounted.sh(df);
        if said == expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("df says {said}, not {expected}");
}

fn df_shows_what_a_quota_leaves_and_dd_runs_into_it(account: &Account) {
    let mut mounted = Mounted::with(account, "size=4MiB");
    mounted.sh("head -c 1000000 /dev/zero >a; mkdir directory");
    // Blocks of 4096 bytes: one that is used in part is used.
    df_becomes(&mounted, "4194304 1003520 3190784 1");
    let said = mounted.sh("! dd if=/dev/zero of=b bs=1M count=4 2>said_by_dd; cat said_by_dd");
    assert!(said.contains("Disk quota exceeded"), "{said}");
    let said = mounted.sh("! fallocate -l 4M c 2>&1; ! truncate -s 4M c 2>&1");
    assert_eq!(said.matches("Disk quota exceeded").count(), 2, "{said}");
    mounted.sh("rm said_by_dd c; dd if=/dev/zero of=b bs=1M count=3 conv=notrunc");
    let full = "4194304 4149248 45056 2";
    df_becomes(&mounted, full);
    mounted.kill_worker();
    df_becomes(&mounted, full);
    mounted.remount();
    df_becomes(&mounted, full);
    mounted.sh("rm a; truncate -s 1M b; head -c 3M /dev/zero >d");
    df_becomes(&mounted, "4194304 4194304 0 2");
    assert!(mounted.sh_fails(0, "echo x >>d"));
    mounted.sh("echo x | dd of=d conv=notrunc");
}

fn without_a_quota_df_shows_what_is_used(account: &Account) {
    let mut mounted = Mounted::by_root(account, "");
    mounted.sh("mkdir -p a/b; head -c 8192 /dev/zero >a/b/c; ln -s c a/b/link");
    mounted.remount();
    let all = u64::MAX / 4096 * 4096;
    let df = format!("{all} 12288 {} 2", all - 12_288);
    df_becomes(&mounted, &df);
}

fn symlinks_are_kept_as_they_are(account: &Account) {
    let mut mounted = Mounted::by_root(account, "");
    let targets = [
        "file",
        "../outside",
        "/etc/hostname",
        "nowhere at all",
        "ümläut",
    ];
    fs::write(mounted.path("file"), b"target").expect("write");
    for (number, target) in targets.iter().enumerate() {
        symlink(target, mounted.path(&format!("link{number}"))).expect("a symlink");
    }
    mounted.remount();
    for (number, target) in targets.iter().enumerate() {
        let link = mounted.path(&format!("link{number}"));
        assert_eq!(
            fs::read_link(&link).expect("readlink"),
            std::path::Path::new(target)
        );
        assert!(fs::symlink_metadata(&link).expect("lstat").is_symlink());
    }
    assert_eq!(
        fs::read(mounted.path("link0")).expect("it is followed"),
        b"target"
    );
}

#[test]
fn a_directory_of_twenty_thousand_objects_lists_each_of_them_once() {
    let s3 = LocalS3::start();
    // Put there by somebody else: twenty pages of a listing.
    s3.put_empty("many", (0..20_000).map(|number| format!("{number:05}")));
    let mounted = Mounted::by_root(s3.account(), "");
    let mut names: Vec<String> = fs::read_dir(mounted.path("many"))
        .expect("it opens")
        .map(|entry| {
            entry
                .expect("it lists")
                .file_name()
                .into_string()
                .expect("ASCII")
        })
        .collect();
    names.sort_unstable();
    assert_eq!(names.len(), 20_000);
    assert!(
        names
            .iter()
            .enumerate()
            .all(|(i, name)| *name == format!("{i:05}"))
    );
    assert_eq!(mounted.sh("ls -l many | wc -l"), "20001");
}

fn git_clones_into_it_and_fsck_finds_nothing(account: &Account) {
    let mut mounted = Mounted::by_root(account, "");
    mounted.sh(r#"git init -q -b main "$LOCAL/origin"; cd "$LOCAL/origin"
           git config user.name Test; git config user.email test@example.com
           mkdir -p src/deep; for i in $(seq 60); do seq $i 400 >src/deep/$i; done
           head -c 300000 /dev/urandom >binary; ln -s src link; echo '#!/bin/sh' >run; chmod +x run
           git add .; git commit -qm first; echo more >>src/deep/1; git commit -qam second
           git tag -m one v1"#);
    mounted.sh(r#"git clone -q "file://$LOCAL/origin" clone; cd clone
           test -z "$(git status --porcelain)"; git fsck --full --strict
           git config user.name Test; git config user.email test@example.com
           git checkout -q -b topic; mkdir new; date >new/file; rm src/deep/2; git add -A
           git commit -qm third; git checkout -q main; git merge -q topic; git gc -q
           test -z "$(git status --porcelain)"; git log --oneline | wc -l"#);
    mounted.remount();
    let log = mounted.sh(
        r#"cd clone; git fsck --full --strict 2>&1; test -z "$(git status --porcelain)"
           git push -q origin topic; git log --oneline | wc -l"#,
    );
    assert!(log.ends_with('3'), "{log}");
}

fn tar_cp_and_sha256sum_agree_before_and_after_a_remount(account: &Account) {
    let mut mounted = Mounted::by_root(account, "");
    mounted.sh(r#"mkdir -p "$LOCAL/tree/sub/empty"; cd "$LOCAL/tree"
           for i in $(seq 40); do head -c $((i * 7919)) /dev/urandom >"sub/file $i"; done
           head -c 20000000 /dev/urandom >large; : >none; ln -s "sub/file 1" link
           chmod 600 "sub/file 2"; chown 1000:1000 "sub/file 3"; touch -d 2001-02-03 "sub/file 4"
           find . -type f -print0 | sort -z | xargs -0 sha256sum >"$LOCAL/sums"
           tar -cf "$LOCAL/tree.tar" ."#);
    mounted.sh(r#"mkdir tarred; tar -C tarred -xpf "$LOCAL/tree.tar"
           cp -a "$LOCAL/tree" copied; cp -a copied again; mv again moved"#);
    let check = r#"
        for place in tarred copied moved; do
            (cd $place; sha256sum --quiet -c "$LOCAL/sums")
            tar -C $place --sort=name -cf "$LOCAL/$place.tar" .
            tar --sort=name -C "$LOCAL/tree" --compare -f "$LOCAL/$place.tar"
        done"#;
    mounted.sh(check);
    mounted.remount();
    mounted.sh(check);
}

fn an_ordinary_user_mounts_through_fusermount3(account: &Account) {
    let mut mounted = Mounted::by(NOBODY, account, "theirs");
    mounted.sh("mkdir d; echo mine >d/file; mv d/file d/renamed; chmod 640 d/renamed");
    assert_eq!(
        mounted.sh("stat -c '%u %a' d/renamed; cat d/renamed"),
        "65534 640\nmine"
    );
    account.becomes("theirs/d/renamed", Some(b"mine\n"));
    mounted.remount();
    assert_eq!(
        mounted.sh("cat d/renamed; rm -r d; ls -A | wc -l"),
        "mine\n0"
    );
    let point = mounted.path("");
    succeed(mounted.bucketvol(60).arg("unmount").arg(&point));
    assert!(mounted.ended_by_itself(), "{}", mounted.log());
    assert!(!mounted.is_mounted());
}

fn the_kernel_checks_permissions_for_other_users_of_a_mount_by_root(account: &Account) {
    let mounted = Mounted::by_root(account, "");
    mounted.sh("echo open >open; echo closed >closed; chmod 600 closed; mkdir -m 1777 shared");
    assert_eq!(mounted.sh_as(NOBODY, "cat open"), "open");
    assert!(mounted.sh_fails(NOBODY, "cat closed"));
    assert!(mounted.sh_fails(NOBODY, "echo no >open"));
    assert!(mounted.sh_fails(NOBODY, "rm open"));
    mounted.sh_as(NOBODY, "echo theirs >shared/file; chmod 600 shared/file");
    assert_eq!(
        mounted.sh("stat -c '%u:%g %a' shared/file"),
        "65534:65534 600"
    );
    assert!(
        mounted.sh_fails(1000, "rm -f shared/file"),
        "the sticky bit was not honoured"
    );
}

fn a_plain_umount_loses_nothing(account: &Account) {
    let mut mounted = Mounted::by_root(account, "");
    mounted.sh("echo kept >file");
    succeed(std::process::Command::new("umount").arg(mounted.path("")));
    assert!(mounted.ended_by_itself(), "{}", mounted.log());
    account.becomes("file", Some(b"kept\n"));
    mounted_directory_is_as_found(&mounted);
}

fn a_mount_point_that_cannot_be_used_is_refused_in_one_line(account: &Account) {
    let mounted = Mounted::by_root(account, "");
    let url = format!("s3://{}", account.bucket);
    let options = format!("endpoint={},region={}", account.endpoint, account.region);
    let full = mounted.local("full");
    fs::create_dir(&full).expect("a directory");
    fs::write(full.join("file"), b"in the way").expect("a file in it");
    let places = [
        ("missing", mounted.local("missing")),
        ("not empty", full.clone()),
        ("a file", full.join("file")),
        ("already mounted", mounted.path("")),
    ];
    for (what, place) in places {
        let mut mount = mounted.bucketvol(25);
        mount
            .arg("mount")
            .arg(&url)
            .arg(&place)
            .args(["-o", &options]);
        let said = fail(&mut mount);
        let shown = place.display().to_string();
        assert!(said.contains(shown.trim_end_matches('/')), "{what}: {said}");
        assert!(!said.contains("panicked"), "{what}: {said}");
    }
    assert!(
        mounted.is_mounted(),
        "the mount that was there is still there"
    );
    assert_eq!(mounted.sh("echo works >file; cat file"), "works");
}

fn a_handle_keeps_its_place_over_many_small_writes(account: &Account) {
    let mounted = Mounted::by_root(account, "");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(mounted.path("numbers"))
        .expect("create");
    for number in 0..20_000_u32 {
        file.write_all(&number.to_le_bytes()).expect("write");
    }
    file.seek(SeekFrom::Start(40_000)).expect("seek");
    let mut word = [0; 4];
    file.read_exact(&mut word).expect("read");
    assert_eq!(u32::from_le_bytes(word), 10_000);
    file.set_permissions(fs::Permissions::from_mode(0o400))
        .expect("fchmod");
    file.write_all(&7_u32.to_le_bytes())
        .expect("an open handle keeps its right to write");
    drop(file);
    let numbers = (0_u32..20_000).map(|number| if number == 10_001 { 7 } else { number });
    let expected: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
    account.becomes("numbers", Some(&expected));
}

fn mounted_directory_is_as_found(mounted: &Mounted) {
    let left = fs::read_dir(mounted.path(""))
        .expect("the mount point is there")
        .count();
    assert_eq!(left, 0);
}

fn locks_hold_between_processes_of_this_host(account: &Account) {
    let mounted = Mounted::by_root(account, "");
    // The first holds the lock for as long as its descriptor 9 is open; the second must not get it meanwhile.
    mounted.sh("exec 9>lock; flock -n 9; ! flock -n lock true");
    mounted.sh("flock -n lock true");
}

fn what_another_host_writes_is_seen_at_the_next_open_after_the_ttl(account: &Account) {
    let (here, there) = (Mounted::by_root(account, ""), Mounted::by_root(account, ""));
    let default_ttl = Duration::from_secs(1);
    fs::write(there.path("file"), b"one").expect("write");
    account.becomes("file", Some(b"one"));
    let mut before = File::open(here.path("file")).expect("open");
    for bytes in [&b"two"[..], b"longer than before"] {
        fs::write(there.path("file"), bytes).expect("write");
        std::thread::sleep(default_ttl + default_ttl / 5);
        assert_eq!(fs::read(here.path("file")).expect("read"), bytes);
    }
    // The old file is another inode: it is its own bytes or nothing, never the new ones.
    let mut text = Vec::new();
    match before.read_to_end(&mut text) {
        Ok(_) => assert_eq!(text, b"one"),
        Err(error) => assert_eq!(error.raw_os_error(), Some(116), "ESTALE: {error}"),
    }
    fs::remove_file(there.path("file")).expect("remove");
    std::thread::sleep(default_ttl + default_ttl / 5);
    assert!(!here.path("file").exists());
}

fn what_one_mount_has_learnt_of_objects_the_next_one_knows(account: &Account) {
    const LS: &str = "ls -lnR --time-style=full-iso";
    let mut mounted = Mounted::keeping_cache(account, "");
    mounted.sh("mkdir dir dir/empty
         for i in $(seq 300); do echo $i >dir/$i; done
         chmod 600 dir/1
         chown 7:8 dir/2
         ln -s 1 dir/link");
    account.put("dir/foreign", b"by another program");
    mounted.remount();
    // Younger than this it could change without a sign of it.
    std::thread::sleep(Duration::from_secs(4));
    let heads = |mounted: &Mounted| mounted.requests().get("head").copied().unwrap_or(0);

    let before = heads(&mounted);
    let shown = mounted.sh(LS);
    assert!(shown.contains("link -> 1") && shown.contains("-rw-------"));
    assert!(heads(&mounted) - before >= 300);
    mounted.remount();
    let before = heads(&mounted);
    assert_eq!(mounted.sh(LS), shown);
    assert_eq!(heads(&mounted) - before, 0);
}

fn what_one_mount_has_read_the_next_one_has_on_the_disk(account: &Account) {
    const BYTES: u64 = 9 << 20;
    let body: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8).collect();
    account.put("large", &body);
    let mut mounted = Mounted::keeping_cache(account, "cache_disk=64MiB");
    assert!(fs::read(mounted.path("large")).expect("read") == body);
    let on_disk = |mounted: &Mounted| mounted.status()["cache_disk_bytes"].as_u64();
    let limit = Duration::from_secs(20);
    wait_for("it is on the disk", limit, || {
        on_disk(&mounted) >= Some(BYTES)
    });
    mounted.remount();
    assert!(fs::read(mounted.path("large")).expect("read") == body);
    assert_eq!(mounted.requests().get("get"), None);

    let other = vec![7; 9 << 20];
    account.put("large", &other);
    std::thread::sleep(Duration::from_secs(2));
    assert!(fs::read(mounted.path("large")).expect("read") == other);
}

fn what_waits_is_listed_exported_given_up_and_retried(account: &Account) {
    let mounted = Mounted::with(account, "upload_delay=1h,max_dirty_age=1h");
    let pending = |arguments: &[&str]| {
        let mut command = mounted.bucketvol(60);
        command.arg("pending").args(arguments);
        command
    };
    let point = mounted.path("");
    let point = point.to_str().expect("UTF-8");
    fs::write(mounted.path("file"), b"first").expect("write");
    succeed(&mut pending(&["retry"]));
    assert_eq!(account.get("file").as_deref(), Some(&b"first"[..]));
    assert_eq!(succeed(&mut pending(&["ls", "--json"])), "[]");
    let status = succeed(mounted.bucketvol(60).args(["status", "--json"]));
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let writes = &status[0]["mounts"][0]["conditional_writes"];
    assert!(writes.is_string(), "{status}");

    fs::write(mounted.path("file"), b"and second").expect("write");
    let listed: serde_json::Value =
        serde_json::from_str(&succeed(&mut pending(&["ls", "--json"]))).expect("JSON");
    assert_eq!(listed[0]["change"]["key"], "file");
    assert_eq!(listed[0]["change"]["bytes"], 10);
    let copy = mounted.local("copy");
    let export = ["export", point, "file", copy.to_str().expect("UTF-8")];
    succeed(&mut pending(&export));
    assert_eq!(fs::read(&copy).expect("read"), b"and second");
    assert!(fail(&mut pending(&export)).contains("exists"));

    let discard = ["discard", point, "file"];
    fail(&mut pending(&discard));
    assert_eq!(fs::read(mounted.path("file")).expect("read"), b"and second");
    succeed(&mut pending(&["discard", "--yes", point, "file"]));
    assert_eq!(fs::read(mounted.path("file")).expect("read"), b"first");
    let said = fail(&mut pending(&["discard", "--yes", point, "file"]));
    assert!(said.contains("pending ls"), "{said}");
    let said = fail(&mut pending(&["export", "elsewhere", "file", "copy2"]));
    assert!(said.contains("bucketvol status"), "{said}");
}
