//! Writes `nexus-proto/src/generated/` from `nexus-proto/proto/`. Needs no protoc.
//!
//! `cargo run --manifest-path nexus-proto/codegen/Cargo.toml` writes; with `--check` it only compares,
//! and fails if what is committed is not what would be written.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

const FILES: [&str; 5] = [
    "grpc/health/v1/health.proto",
    "pelton/nexus/v1/admin.proto",
    "pelton/nexus/v1/common.proto",
    "pelton/nexus/v1/feed.proto",
    "pelton/nexus/v1/peer.proto",
];
const OUTPUTS: [&str; 2] = ["grpc.health.v1.rs", "pelton.nexus.v1.rs"];

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let check = match env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => false,
        [only] if only == "--check" => true,
        other => return Err(format!("takes --check or nothing, not {other:?}").into()),
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("codegen stands in nexus-proto")?;
    let committed = here.join("src/generated");
    let fresh = env::temp_dir().join(format!("pelton-nexus-codegen-{}", std::process::id()));
    fs::create_dir_all(&fresh)?;
    let written = generate(&here.join("proto"), &fresh);
    let verdict = written.and_then(|()| if check { compare(&fresh, &committed) } else { copy(&fresh, &committed) });
    fs::remove_dir_all(&fresh)?;
    verdict
}

fn generate(proto: &Path, target: &Path) -> Result<(), Box<dyn Error>> {
    let mut compiler = protox::Compiler::new([proto])?;
    // Comments become documentation.
    compiler.include_source_info(true);
    let files = compiler.open_files(FILES)?.file_descriptor_set();
    let mut prost = prost_build::Config::new();
    prost
        // What is received is a slice of the receive buffer, not a copy...
        .bytes([
            ".pelton.nexus.v1.Parcel.bytes",
            ".pelton.nexus.v1.BlobFrame.bytes",
            ".pelton.nexus.v1.RangeChunk.bytes",
        ])
        // ...and equal messages have equal bytes.
        .btree_map(["."]);
    tonic_prost_build::configure()
        .out_dir(target)
        // `connect` would bring a transport; whoever has a channel can do without.
        .build_transport(false)
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .compile_fds_with_config(files, prost)?;
    Ok(())
}

fn copy(fresh: &Path, committed: &Path) -> Result<ExitCode, Box<dyn Error>> {
    fs::create_dir_all(committed)?;
    for name in OUTPUTS {
        fs::copy(fresh.join(name), committed.join(name))?;
        println!("wrote {}", committed.join(name).display());
    }
    Ok(ExitCode::SUCCESS)
}

fn compare(fresh: &Path, committed: &Path) -> Result<ExitCode, Box<dyn Error>> {
    let mut code = ExitCode::SUCCESS;
    for name in OUTPUTS {
        // A missing file is drift too.
        let same = fs::read(fresh.join(name))? == fs::read(committed.join(name)).unwrap_or_default();
        println!("{} {name}", if same { "same   " } else { "differs" });
        if !same {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
