//! The kernels of this workspace are understood, every statement of them.

use std::path::Path;
use stem_emulator::{isa, ptx};

#[test]
fn every_committed_kernel_decodes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../host/ptx");
    let mut kernels = 0;
    for file in std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "ptx")) {
        let module = ptx::module(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let tables = vec![4096; module.tables.len()];
        for entry in &module.entries {
            let kernel = isa::kernel(entry, &tables);
            let unknown: Vec<_> = kernel.unknown().collect();
            assert!(unknown.is_empty(), "{}: {unknown:?}", file.display());
            assert!(kernel.code.len() > 2, "{} is empty", kernel.name);
            kernels += 1;
        }
    }
    assert!(kernels > 30, "{kernels} kernels");
}
