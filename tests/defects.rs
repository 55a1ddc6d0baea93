//! The page of defects names tests: all of them exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// All sources of the workspace, by their path within it.
fn sources(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && name != "target" {
            sources(&path, found);
        } else if name.ends_with(".rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
}

/// Names in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Goal: a row whose test was renamed or removed is noticed. Method: each name in the last column is a file of the
/// workspace, or a test of one.
#[test]
fn each_test_that_the_page_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    sources(root, &mut all);
    let page = std::fs::read_to_string(root.join("docs/defects.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| elsewhere"));
    let mut missing = BTreeSet::new();
    let mut tests = 0;
    for row in rows {
        let last = row.trim_end_matches(['|', ' ']).rsplit(" | ").next().unwrap();
        assert!(quoted(last).next().is_some(), "no test is named: {row}");
        for name in quoted(last) {
            let exists = match name.ends_with(".rs") {
                true => all.iter().any(|(path, _)| path.ends_with(name)),
                false => {
                    tests += 1;
                    let function = format!("fn {name}(");
                    all.iter().any(|(_, text)| text.contains(&function))
                }
            };
            if !exists {
                missing.insert(name.to_owned());
            }
        }
    }
    assert!(missing.is_empty(), "there are no such tests: {missing:?}");
    assert!(tests > 60, "only {tests} tests are named: was the table read at all?");
}
