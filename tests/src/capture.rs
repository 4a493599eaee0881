//! Real queries, keys and values: the capture that the demo runs on, and others of the same form.

use crate::batch::Batch;
use float8::F8E4M3;
use safetensors::SafeTensors;

/// Layer 5 of a small language model, 8,192 tokens: see demo/README.md. Embedded, so that the test binary runs anywhere.
pub const CAPTURE: &[u8] = include_bytes!("../../demo/qkv_layer5_8k.safetensors");

/// The first `tokens` tokens of a capture, or all.
///
/// # Panics
/// When the bytes are not one: `q`, `k`, `v` in e4m3 and their scales, without history.
pub fn capture(bytes: &[u8], tokens: Option<usize>) -> Batch {
    let file = SafeTensors::deserialize(bytes).expect("the capture");
    let shape = |name: &str| file.tensor(name).expect(name).shape().to_vec();
    let (hq, hkv, tokens) = (shape("q")[1], shape("k")[1], tokens.unwrap_or(shape("q")[0]));
    assert_eq!(shape("q")[0], shape("k")[0], "a capture without history");
    let codes = |name: &str, row: usize| -> Vec<F8E4M3> {
        file.tensor(name).expect(name).data()[..tokens * row].iter().map(|&b| F8E4M3::from_bits(b)).collect()
    };
    let floats = |name: &str, n: usize| -> Vec<f32> {
        let data = file.tensor(name).expect(name).data();
        data.chunks_exact(4).take(n).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    };
    Batch {
        hq,
        hkv,
        q: codes("q", hq * 128),
        q_scale: floats("q_scale", tokens * hq),
        k: codes("k", hkv * 128),
        v: codes("v", hkv * 128),
        k_scale: floats("k_scale", shape("k_scale")[0]),
        v_scale: floats("v_scale", shape("v_scale")[0]),
        cu_seqlens_q: vec![0, tokens as i32],
        cu_seqlens_kv: vec![0, tokens as i32],
        prompt_lens: vec![tokens as i32],
    }
}

/// The files that `STEM_ATTN_CAPTURES` names, separated as in `PATH`: name and capture.
///
/// # Panics
/// When one cannot be read.
pub fn others() -> Vec<(String, Batch)> {
    let paths = std::env::var_os("STEM_ATTN_CAPTURES").unwrap_or_default();
    let paths = std::env::split_paths(&paths).filter(|path| !path.as_os_str().is_empty());
    paths
        .map(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            (name, capture(&std::fs::read(&path).expect("a capture"), None))
        })
        .collect()
}
