//! The layers of ARCHITECTURE.md and the promises of SEMANTICS.md, held against the sources.

use std::path::{Path, PathBuf};

/// What a module may name of the crate. One that is not here is below all and names nothing.
const LAYERS: [(&str, &[&str]); 6] = [
    (
        "cli",
        &[
            "cli",
            "plugin",
            "fs",
            "keeper",
            "store",
            "config",
            "clock",
            "telemetry",
        ],
    ),
    ("plugin", &["plugin", "config", "clock"]),
    ("fs", &["fs", "store", "config", "clock"]),
    ("store", &["store", "config", "clock"]),
    ("config", &["config", "clock"]),
    ("keeper", &["keeper"]),
];

fn sources(below: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(below);
    let mut found = Vec::new();
    let mut pending = vec![root];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(
                std::fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

#[test]
fn no_module_names_one_above_it() {
    for (layer, below) in LAYERS {
        for (path, text) in sources(&format!("src/{layer}")) {
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for named in code.split("crate::").skip(1) {
                    let module = named
                        .split(|c: char| !c.is_alphanumeric() && c != '_')
                        .next();
                    assert!(
                        module.is_none_or(|m| m.is_empty() || below.contains(&m)),
                        "{}:{}: {layer} names {}",
                        path.display(),
                        number + 1,
                        module.unwrap_or_default(),
                    );
                }
            }
        }
    }
}

#[test]
fn only_the_kernels_edge_names_fuser_and_the_plugin_no_store() {
    for (path, text) in sources("src") {
        let is_edge = path.to_string_lossy().contains("/src/fs/fuse/");
        let is_plugin = path.to_string_lossy().contains("/src/plugin/");
        for line in text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
        {
            assert!(
                is_edge || !line.contains("fuser::"),
                "{}: {line}",
                path.display()
            );
            for crate_name in ["moka::", "object_store::"] {
                assert!(
                    !(is_plugin && line.contains(crate_name)),
                    "{}: {line}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn every_promise_of_the_semantics_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let semantics = std::fs::read_to_string(root.join("SEMANTICS.md")).unwrap();
    let code: String = sources("src")
        .into_iter()
        .chain(sources("tests"))
        .map(|(_, text)| text)
        .collect();
    let mut promises = 0;
    for promise in semantics.split("\n- ").skip(1) {
        let promise = promise.split("\n\n").next().unwrap_or_default();
        let tests: Vec<&str> = promise
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| word.contains("::"))
            .collect();
        assert!(
            !tests.is_empty() || promise.starts_with("*Not yet"),
            "no test is named for: {promise}"
        );
        for test in tests {
            let name = test.rsplit("::").next().unwrap_or_default();
            assert!(
                code.contains(&format!("fn {name}(")),
                "there is no test {test}"
            );
        }
        promises += 1;
    }
    assert!(promises > 30, "only {promises} promises were found");
}
