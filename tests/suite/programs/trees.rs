//! Whole trees of files: git, rsync and tar; and the ways editors save a file.

use crate::common::mounted::{Mounted, NOBODY};
use crate::common::s3::LocalS3;

use super::{has, writing};

#[test]
fn a_git_repository_takes_clone_gc_and_commits_and_fsck_finds_nothing() {
    if !has(&["git"]) {
        return;
    }
    let s3 = LocalS3::start();
    let mut mounted = Mounted::by_root(s3.account(), "");
    mounted.sh(
        r#"git config --global user.name Test; git config --global user.email test@example.com
           git init -q -b main "$LOCAL/origin"; cd "$LOCAL/origin"; mkdir -p src/deep
           for commit in $(seq 20); do
               for file in 1 2 3 4 5; do seq $commit $((commit * file * 20)) >src/deep/$file; done
               echo $commit >src/$commit; git add .; git commit -qm "commit $commit"
           done
           git checkout -qb side HEAD~5; echo side >side; git add .; git commit -qm side
           git checkout -q main; git merge -q --no-edit side; git tag -am tag v1"#,
    );
    let log = mounted.sh(r#"git clone -q "file://$LOCAL/origin" clone; cd clone
           git fsck --full --strict; git gc -q --prune=now; git fsck --full --strict
           echo more >>src/1; git mv src/2 src/two; git commit -qam after
           git repack -qadf; git worktree add -q ../worktree v1
           git clone -q --local . ../linked; git -C ../linked fsck --full --strict
           git status --porcelain; git log --format=%T"#);
    for _ in 0..2 {
        mounted.remount();
        mounted.sh("cd clone; git fsck --full --strict; git -C ../worktree status --porcelain | diff - /dev/null");
        mounted.sh("git -C linked fsck --full --strict");
        let again = mounted.sh("cd clone; git status --porcelain; git log --format=%T");
        assert_eq!(again, log);
    }
    let trees =
        mounted.sh("cd clone; git log --format=%T; git -C \"$LOCAL/origin\" log --format=%T");
    assert_eq!(trees.lines().count(), 2 * 22 + 1, "{trees}");
}

#[test]
fn copies_that_are_links_share_their_bytes_until_the_unmount() {
    if !has(&["rsync"]) {
        return;
    }
    let s3 = LocalS3::start();
    let mut mounted = Mounted::by_root(s3.account(), "");
    mounted.sh(
        r#"mkdir tree; for i in $(seq 20); do seq $i 5000 >tree/$i; done
           cp -al tree linked; ln tree/1 linked/one; rsync -aH tree linked copy
           echo more >>copy/linked/one"#,
    );
    let names = "stat -c %h tree/2 copy/tree/2; stat -c %h copy/tree/1 linked/one; cmp copy/tree/1 copy/linked/1";
    assert_eq!(mounted.sh(names), "2\n2\n3\n3");
    // Of the 82 files the store has made 41 or more: directories and the changed file may have been sent twice.
    let written = writing(&mounted);
    assert!(written["copy"] >= 41 && written["put"] < 60, "{written:?}");
    mounted.remount();
    assert_eq!(mounted.sh("stat -c %h tree/2 copy/tree/2"), "1\n1");
    mounted.sh("diff -r tree copy/tree | diff - /dev/null || tail -n1 copy/tree/1 copy/linked/1 copy/linked/one");
}

#[test]
fn a_second_rsync_transfers_nothing_and_writes_nothing_to_the_bucket() {
    if !has(&["rsync"]) {
        return;
    }
    let s3 = LocalS3::start();
    let mut mounted = Mounted::by_root(s3.account(), "");
    mounted.sh(r#"mkdir -p "$LOCAL/tree/sub/empty"; cd "$LOCAL/tree"
           for i in $(seq 40); do seq $i 500 >sub/$i; done
           ln -s sub/1 link; mkfifo pipe; mknod null c 1 3; : >none; echo x >'odd ü name'
           chmod 4751 sub/2; chown 12:34 sub/3; touch -d @1000000000.123456789 sub/4
           touch -h -d @1100000000.5 link; chmod 1770 sub; touch -d @1200000000.25 sub"#);
    let rsync = "rsync -a --itemize-changes --delete \"$LOCAL/tree/\" copy";
    assert_eq!(mounted.sh(rsync).lines().count(), 49);
    let written = writing(&mounted);
    assert!(written["put"] >= 49, "{written:?}");
    assert_eq!(mounted.sh(rsync), "");
    assert_eq!(mounted.sh(&format!("{rsync} --checksum")), "");
    assert_eq!(writing(&mounted), written);

    mounted.remount();
    assert_eq!(mounted.sh(rsync), "");
    assert_eq!(mounted.sh(&format!("{rsync} --checksum")), "");
    assert!(writing(&mounted).is_empty());

    mounted.sh(r#"cd "$LOCAL/tree"; echo more >>sub/7; rm sub/8; touch -d @1200000000.25 sub"#);
    let changed = mounted.sh(rsync);
    assert!(changed.starts_with("*deleting"), "{changed}");
    let mut changed: Vec<_> = changed
        .lines()
        .filter_map(|l| l.split_whitespace().nth(1))
        .collect();
    changed.sort_unstable();
    assert_eq!(changed, ["sub/7", "sub/8"]);
    mounted.sh(&format!(
        "{rsync} --inplace --whole-file --ignore-times >said; rm said"
    ));
    mounted.remount();
    assert_eq!(mounted.sh(&format!("{rsync} --checksum")), "");
    assert_eq!(s3.account().get("copy/sub/8"), None);
}

#[test]
fn five_thousand_files_out_of_an_archive_are_what_went_in() {
    if !has(&["tar", "diff"]) {
        return;
    }
    let s3 = LocalS3::start();
    let mut mounted = Mounted::by_root(s3.account(), "");
    mounted.sh(r#"mkdir "$LOCAL/tree"; cd "$LOCAL/tree"
           for directory in $(seq 25); do
               mkdir -p $directory/sub
               seq 200 | sed "s/^/file $directory of /" | split -l 1 -a 3 - $directory/
               mv $directory/aa? $directory/sub
           done
           find . -type f | wc -l; tar -cf "$LOCAL/tree.tar" ."#);
    mounted.sh("tar -xf \"$LOCAL/tree.tar\"");
    // All names, kinds, modes, owners, sizes and times; the bytes are compared when they come from the bucket.
    let list = "find . -mindepth 1 -type f -printf '%P %M %U:%G %s %T@\\n' | sort";
    let expected = mounted.sh(&format!("cd \"$LOCAL/tree\"; {list}"));
    assert_eq!(expected.lines().count(), 5000);
    // tar keeps whole seconds.
    let seconds = |list: &str| -> String {
        let lines = list
            .lines()
            .map(|line| line.rsplit_once('.').map_or(line, |(line, _)| line));
        lines.collect::<Vec<_>>().join("\n")
    };
    assert!(
        seconds(&mounted.sh(list)) == seconds(&expected),
        "a name or an attribute differs"
    );
    mounted.remount();
    let again = mounted.sh(list);
    assert!(
        seconds(&again) == seconds(&expected),
        "a name or an attribute differs"
    );
    mounted.sh("ls | xargs -P 4 -I NAME diff -r \"$LOCAL/tree/NAME\" NAME");
}

/// What an editor's save leaves: the new bytes, mode and owner as they were, and no other name.
fn saves(editors: &[(&str, &str)]) {
    let s3 = LocalS3::start();
    let mut mounted = Mounted::by_root(s3.account(), "");
    mounted.sh("mkdir theirs; chown 65534:65534 theirs");
    let list = "ls -A . theirs; stat -c '%a %u:%g' file theirs/file; cat file theirs/file";
    for (how, save) in editors {
        mounted
            .sh("printf 'one\\ntwo\\n' >file; chmod 4640 file; chown 12:34 file; chmod 4640 file");
        mounted.sh_as(
            NOBODY,
            "cd theirs; printf 'one\\ntwo\\n' >file; chmod 604 file",
        );
        // A file that the bucket has, and one that it is to get.
        mounted.remount();
        mounted.sh(save);
        mounted.sh_as(NOBODY, &format!("cd theirs; {save}"));
        let text = "one\n2\n";
        let expected =
            format!(".:\nfile\ntheirs\n\ntheirs:\nfile\n4640 12:34\n604 65534:65534\n{text}{text}");
        assert_eq!(mounted.sh(list), expected.trim_end(), "{how}");
        mounted.remount();
        assert_eq!(mounted.sh(list), expected.trim_end(), "{how}");
        let keys = s3.account().keys();
        assert_eq!(keys, ["file", "theirs/", "theirs/file"], "{how}");
        assert_eq!(s3.account().get("file").as_deref(), Some(text.as_bytes()));
        mounted.sh("rm file theirs/file");
    }
}

#[test]
fn what_vim_saves_keeps_mode_and_owner_and_leaves_nothing_beside_it() {
    if !has(&["vim"]) {
        return;
    }
    let vim = |copies: &str| {
        // Without the fourth option it makes no backup below /tmp, which tests may be in.
        let options = format!("set nobackup writebackup backupcopy={copies} backupskip=");
        format!("vim -es -u NONE -i NONE -c '{options}' -c '%s/two/2/' -c wq file")
    };
    let (renames, copies, chooses) = (vim("no"), vim("yes"), vim("auto"));
    saves(&[
        ("by rename", &renames),
        ("in place", &copies),
        ("as it likes", &chooses),
    ]);
}

#[test]
fn what_sed_edits_in_place_keeps_mode_and_owner_and_leaves_nothing_beside_it() {
    if !has(&["sed"]) {
        return;
    }
    saves(&[("sed", "sed -i s/two/2/ file")]);
}
