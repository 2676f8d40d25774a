//! Package managers: they unpack, move into place, lock and undo.

use crate::common::mounted::Mounted;
use crate::common::process::{bounded, cannot_run, output};
use crate::common::s3::LocalS3;

use super::has;

/// Two releases of a package, as pip would fetch them.
const WHEELS: &str = r##"
import sys, zipfile
for version in "1.0", "2.0":
    info = f"tiny-{version}.dist-info/"
    files = {
        "tiny/__init__.py": f"def main(): print('tiny', '{version}')\n",
        "tiny/data.bin": version * 100000,
        info + "METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        info + "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        info + "entry_points.txt": "[console_scripts]\ntiny = tiny:main\n",
    }
    files[info + "RECORD"] = "".join(f"{name},,\n" for name in [*files, info + "RECORD"])
    with zipfile.ZipFile(f"{sys.argv[1]}/tiny-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
"##;

#[test]
fn pip_installs_and_upgrades_a_package_that_python_imports_after_a_remount() {
    if !has(&["python3"]) {
        return;
    }
    let mut look = bounded(60, "python3");
    let look = output(look.args(["-m", "pip", "--version"]));
    if !look.status.success() {
        return cannot_run("python3 has no pip");
    }
    let s3 = LocalS3::start();
    let mut mounted = Mounted::by_root(s3.account(), "");
    std::fs::write(mounted.local("make.py"), WHEELS).expect("the script is written");
    mounted.sh("python3 \"$LOCAL/make.py\" \"$LOCAL\"; python3 -m venv --without-pip environment");
    let run = "environment/bin/python -c 'import tiny; tiny.main()'; packages/bin/tiny";
    let run = format!("export PYTHONPATH=packages; {run}; echo $(ls packages)");
    // Of the release before, pip leaves its description where it has no environment to look into.
    let lists = [
        ("1.0", "bin tiny tiny-1.0.dist-info"),
        ("2.0", "bin tiny tiny-1.0.dist-info tiny-2.0.dist-info"),
    ];
    for (version, list) in lists {
        mounted.sh(&format!(
            "python3 -m pip install --quiet --no-index --no-deps --no-cache-dir --disable-pip-version-check \
                 --upgrade --target packages \"$LOCAL/tiny-{version}-py3-none-any.whl\""
        ));
        let expected = format!("tiny {version}\ntiny {version}\n{list}");
        assert_eq!(mounted.sh(&run), expected);
        mounted.remount();
        assert_eq!(mounted.sh(&run), expected);
    }
}

#[test]
fn dpkg_installs_upgrades_and_removes_a_package() {
    if !has(&["dpkg", "dpkg-deb"]) {
        return;
    }
    let s3 = LocalS3::start();
    let mut mounted = Mounted::by_root(s3.account(), "");
    mounted.sh(r#"mkdir -p "$LOCAL/package/DEBIAN" "$LOCAL/package/etc" "$LOCAL/package/opt/tiny"
        cd "$LOCAL/package"; echo /etc/tiny.conf >DEBIAN/conffiles
        echo setting >etc/tiny.conf; ln -s data opt/tiny/link
        for version in 1 2; do
            printf 'Package: tiny\nArchitecture: all\nMaintainer: Test <test@example.com>\n' >DEBIAN/control
            printf 'Description: a test\nVersion: %s\n' $version >>DEBIAN/control
            echo "data $version" >opt/tiny/data; echo only >opt/tiny/only-$version
            dpkg-deb --root-owner-group --build . "$LOCAL/$version.deb"
            rm opt/tiny/only-$version
        done"#);
    mounted.sh(
        "mkdir -p root/var/lib/dpkg/info root/var/lib/dpkg/updates root/var/lib/dpkg/triggers
        : >root/var/lib/dpkg/status",
    );
    let dpkg = "PATH=\"$PATH:/usr/sbin:/sbin\" dpkg --root=\"$PWD/root\" --log=\"$LOCAL/log\"";
    let list = "cd root; find opt etc -type f -o -type l | sort; cat opt/tiny/link";
    for (version, conffile) in [(1, "setting"), (2, "changed")] {
        mounted.sh(&format!(
            "{dpkg} --force-confold --install \"$LOCAL/{version}.deb\""
        ));
        let files = "etc/tiny.conf\nopt/tiny/data\nopt/tiny/link\nopt/tiny/only";
        let expected = format!("{files}-{version}\ndata {version}");
        assert_eq!(mounted.sh(list), expected);
        mounted.remount();
        assert_eq!(mounted.sh(list), expected);
        assert_eq!(mounted.sh("cat root/etc/tiny.conf"), conffile);
        mounted.sh("echo changed >root/etc/tiny.conf");
        mounted.sh(&format!("{dpkg} --audit"));
    }
    mounted.sh(&format!(
        "{dpkg} --remove tiny; cat root/etc/tiny.conf; {dpkg} --purge tiny"
    ));
    mounted.remount();
    assert_eq!(mounted.sh("ls root"), "var");
    assert_eq!(
        mounted.sh(&format!("{dpkg} --list | grep -c tiny || :")),
        "0"
    );
}
