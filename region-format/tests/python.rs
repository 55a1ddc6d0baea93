//! Readers and writers in another language, written from `docs/region-format.md` alone.

mod support;

use std::path::PathBuf;
use std::process::{Command, Output};

use pelton_region_format::*;
use support::*;

/// Runs a script of `tests/python`, if there is a python3 to run it.
fn python(script: &str, args: &[&str]) -> Option<Output> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    match Command::new("python3").arg(script).args(args).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: no python3 on this machine");
            None
        }
        Err(error) => panic!("python3: {error}"),
    }
}

/// A file of this test's own.
fn scratch(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(name).to_str().unwrap().to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_version_1_file_of_a_python_script_is_read_verified_and_converted_there_and_back() {
    let path = scratch("v1.region");
    let texts = ["hello", "", "pelton", "last"];
    let Some(output) = python("write_v1.py", &[&[path.as_str()], &texts[..]].concat()) else { return };
    assert!(output.status.success(), "{output:?}");
    let file = std::fs::read(&path).unwrap();
    let view = RegionView::open(&file).unwrap();
    assert_eq!(view.version(), Version::V1);
    assert_eq!(view.verify().unwrap().blob_count, 4);
    let blobs = collect(view.blobs()).unwrap();
    assert_eq!(blobs, texts.map(|text| text.as_bytes().to_vec()));

    let version_2 = encode_to_vec(&Header::default(), &blobs, None).unwrap();
    let back = collect(RegionView::open(&version_2).unwrap().blobs()).unwrap();
    assert_eq!(encode_v1_to_vec(back).unwrap(), file);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_version_2_file_is_read_by_a_python_script() {
    let path = scratch("v2.region");
    for alignment in [8, 64, 4096] {
        let header = Header { alignment, ..sample_header() };
        std::fs::write(&path, encode_to_vec(&header, sample_blobs(), Some(SAMPLE_METADATA)).unwrap())
            .unwrap();
        let Some(output) = python("read_v2.py", &[&path]) else { return };
        assert!(output.status.success(), "{output:?}");
        let fingerprint = header.fingerprint.unwrap();
        let mut expected =
            format!("region shop/orders@1719878400000#3 {fingerprint} 2 7 {}\n", hex(SAMPLE_METADATA));
        for blob in sample_blobs() {
            expected += &format!("blob {}\n", hex(&blob));
        }
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
    // The script is a reader that checks: it is told apart from one that only prints.
    let mut file = sample_v2();
    for at in [20, 4160, file.len() - 5000, file.len() - 4000] {
        file[at] ^= 1;
        std::fs::write(&path, &file).unwrap();
        let Some(output) = python("read_v2.py", &[&path]) else { return };
        assert!(!output.status.success(), "byte {at} was changed");
        file[at] ^= 1;
    }
    std::fs::remove_file(path).unwrap();
}
