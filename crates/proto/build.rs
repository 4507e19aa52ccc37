//! Compiles the schema with protox, a protobuf compiler in Rust: no protoc is needed.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const SCHEMA: &str = "evidenceos/v2/evidenceos.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto/{SCHEMA}");
    let descriptors = protox::compile([SCHEMA], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".")
        .compile_fds(descriptors)?;
    Ok(())
}
