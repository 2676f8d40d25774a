//! What the README and the examples tell people to type is what the program accepts.

use std::path::Path;

use bucketvol::config::{Location, Options, Scope};

#[test]
fn every_volume_the_readme_creates_is_accepted() {
    let commands = commands("docker volume create -d bucketvol");
    assert!(commands.len() >= 5, "{commands:?}");
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        let options = words
            .windows(2)
            .filter(|pair| pair[0] == "-o")
            .map(|pair| pair[1]);
        let parsed = Options::parse(options.map(pair), Scope::Volume, None);
        assert!(parsed.is_ok(), "{command}: {parsed:?}");
    }
}

#[test]
fn every_mount_of_the_readme_is_accepted() {
    let commands = commands("bucketvol mount s3://");
    assert!(!commands.is_empty());
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        let location = Location::parse(words[2]).expect("a URL");
        let at = words
            .iter()
            .position(|word| *word == "-o")
            .expect("options");
        let options = words[at + 1].split(',').map(pair);
        let parsed = Options::parse(options, Scope::Mount, Some(location));
        assert!(parsed.is_ok(), "{command}: {parsed:?}");
    }
}

#[test]
fn the_compose_file_creates_a_volume_that_is_accepted() {
    let text = file("examples/compose.yaml");
    let (_, options) = text
        .split_once("driver_opts:\n")
        .expect("the file has driver_opts");
    let options = options.lines().map(|line| {
        let (key, value) = line.trim().split_once(": ").expect("key: value");
        (key.to_owned(), value.trim_matches('"').to_owned())
    });
    let parsed = Options::parse(options, Scope::Volume, None).expect("it is accepted");
    assert_eq!(parsed.location.to_string(), "s3://photos/2026");
}

#[test]
fn every_page_the_readme_links_to_is_there() {
    for link in file("README.md").split("](").skip(1) {
        let target = link.split(')').next().unwrap_or_default();
        if !target.starts_with("http") {
            assert!(root().join(target).exists(), "README.md links to {target}");
        }
    }
}

/// The README's commands that begin so, each on one line.
fn commands(beginning: &str) -> Vec<String> {
    let text = file("README.md").replace("\\\n", " ");
    text.lines()
        .filter(|line| line.starts_with(beginning))
        .map(str::to_owned)
        .collect()
}

fn pair(option: &str) -> (String, String) {
    let (key, value) = option.split_once('=').unwrap_or((option, ""));
    (key.to_owned(), value.to_owned())
}

fn file(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).expect("the file is there")
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
