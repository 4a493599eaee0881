//! Input tensors from a safetensors file. The file is untrusted: everything is checked before a tensor is read.

use super::work::Shape;
use crate::error::{Error, Result};
use crate::fp8::{quantize_per_tensor, quantize_per_token_head};
use crate::mask::BlockLists;
use crate::tensor::PrefillInputs;
use float8::F8E4M3;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::path::Path;
use stem_attn_kernels::config::HEAD_DIM;

/// Most heads of either kind: the y extent of a CUDA grid.
const MAX_HEADS: usize = 65_535;

/// Tensors of one request, ready for a backend.
#[derive(Debug)]
pub struct Input {
    pub shape: Shape,
    pub q: Vec<F8E4M3>,
    pub q_scale: Vec<f32>,
    pub k: Vec<F8E4M3>,
    pub v: Vec<F8E4M3>,
    pub k_scale: Vec<f32>,
    pub v_scale: Vec<f32>,
    /// Lists of the file's `block_mask`.
    pub lists: Option<BlockLists>,
    /// What was quantised and from which type, for the report.
    pub source: String,
    cu_q: [i32; 2],
    cu_kv: [i32; 2],
    prompt: [i32; 1],
}

impl Input {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self> {
        let unreadable = |got: String| Error::value("input", "a readable safetensors file", format!("{}: {got}", path.display()));
        // Asked before opening, which would wait for the writer of a named pipe.
        let meta = std::fs::metadata(path).map_err(|e| unreadable(e.to_string()))?;
        if !meta.is_file() {
            return Err(unreadable("not a regular file".into()));
        }
        if meta.len() < 8 {
            return Err(unreadable(format!("{} bytes, shorter than a header", meta.len())));
        }
        let file = std::fs::File::open(path).map_err(|e| unreadable(e.to_string()))?;
        // SAFETY: the mapping is private and read-only, and nothing of it outlives this call. A program that truncates
        // the file meanwhile can end this process with SIGBUS, as for every reader of mapped files.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| unreadable(e.to_string()))?;
        Self::parse(&map).map_err(|e| match e {
            Error::Value { name: "input", expected, got } => {
                Error::Value { name: "input", expected, got: format!("{}: {got}", path.display()) }
            }
            other => other,
        })
    }

    /// Reads and checks the bytes of a file.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        check_header(bytes)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|e| malformed(e.to_string()))?;
        let get = |name: &'static str| tensors.tensor(name).ok();
        let need = |name: &'static str, shape: &str| {
            get(name).ok_or_else(|| {
                let mut names = tensors.names();
                names.sort_unstable();
                let names: Vec<String> = names.into_iter().take(8).map(short).collect();
                Error::shape(name, format!("a tensor {shape} in the file"), format!("none; the file holds {}", names.join(", ")))
            })
        };
        let (q, k, v) = (need("q", "[T, Hq, 128]")?, need("k", "[Tk, Hkv, 128]")?, need("v", "[Tk, Hkv, 128]")?);
        let ([tokens, hq], [kv_tokens, hkv], v_shape) = (rows_heads("q", &q)?, rows_heads("k", &k)?, rows_heads("v", &v)?);
        if v_shape != [kv_tokens, hkv] {
            return Err(Error::shape("v", format!("[{kv_tokens}, {hkv}, 128], the shape of k"), format!("{:?}", v.shape())));
        }
        for (name, heads) in [("q", hq), ("k", hkv)] {
            if heads > MAX_HEADS {
                return Err(Error::shape(name, format!("at most {MAX_HEADS} heads"), heads));
            }
        }
        if hkv == 0 || hq == 0 || !hq.is_multiple_of(hkv) {
            return Err(Error::shape("q", format!("heads a positive multiple of the {hkv} KV heads of k"), format!("{hq} heads")));
        }
        if kv_tokens < tokens {
            return Err(Error::shape("k", format!("at least {tokens} tokens, as in q (causal: every query sees its own key)"), kv_tokens));
        }
        let prompt = i32::try_from(kv_tokens).map_err(|_| Error::shape("k", "at most 2,147,483,647 tokens", kv_tokens))?;
        let shape = Shape { tokens, kv_tokens, hq, hkv };
        let lists = get("block_mask").map(|m| mask_lists(&m, &shape)).transpose()?;

        let (q_codes, q_scale) = match q.dtype() {
            Dtype::F8_E4M3 => {
                (codes("q", &q)?, scales("q_scale", get("q_scale"), &[&[tokens, hq]])?.unwrap_or_else(|| vec![1.0; tokens * hq]))
            }
            _ => {
                no_scale("q_scale", "q", get("q_scale"), q.dtype())?;
                quantize_per_token_head("q", &reals("q", &q)?)?
            }
        };
        let per_head: &[&[usize]] = &[&[1], &[hkv]];
        let per_token: &[&[usize]] = &[&[1], &[hkv], &[kv_tokens, hkv]];
        let key_value = |name, scale_name, view: &TensorView<'_>, shapes| match view.dtype() {
            Dtype::F8_E4M3 => Ok((codes(name, view)?, scales(scale_name, get(scale_name), shapes)?.unwrap_or_else(|| vec![1.0]))),
            _ => {
                no_scale(scale_name, name, get(scale_name), view.dtype())?;
                quantize_per_tensor(name, &reals(name, view)?).map(|(codes, scale)| (codes, vec![scale]))
            }
        };
        let (k_codes, k_scale) = key_value("k", "k_scale", &k, per_token)?;
        let (v_codes, v_scale) = key_value("v", "v_scale", &v, per_head)?;
        let source = format!("q {:?}, k {:?}, v {:?}", q.dtype(), k.dtype(), v.dtype());
        let input = Self {
            shape,
            q: q_codes,
            q_scale,
            k: k_codes,
            v: v_codes,
            k_scale,
            v_scale,
            lists,
            source,
            cu_q: [0, tokens as i32],
            cu_kv: [0, prompt],
            prompt: [prompt],
        };
        input.inputs().validate(true)?;
        Ok(input)
    }

    /// The borrowed form that backends take.
    pub fn inputs(&self) -> PrefillInputs<'_> {
        PrefillInputs {
            q: &self.q,
            q_scale: &self.q_scale,
            k: &self.k,
            v: &self.v,
            k_scale: &self.k_scale,
            v_scale: &self.v_scale,
            hq: self.shape.hq,
            hkv: self.shape.hkv,
            cu_seqlens_q: &self.cu_q,
            cu_seqlens_kv: &self.cu_kv,
            prompt_lens: &self.prompt,
        }
    }
}

/// A name from the file, cut so that a message stays one short line.
fn short(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(40).collect()
}

fn malformed(got: impl ToString) -> Error {
    Error::value("input", "a whole safetensors file", got)
}

/// Bounds every length of the header by the file's, before the safetensors crate adds them up.
fn check_header(bytes: &[u8]) -> Result<()> {
    let length = bytes.first_chunk::<8>().map(|n| u64::from_le_bytes(*n)).ok_or_else(|| malformed("shorter than a header"))?;
    let header = usize::try_from(length).ok().and_then(|n| bytes.get(8..)?.get(..n));
    let Some(header) = header else {
        return Err(malformed(format!("header of {length} bytes in a file of {}", bytes.len())));
    };
    let data = (bytes.len() - 8 - header.len()) as u64;
    let entries: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|e| malformed(format!("header is not JSON: {e}")))?;
    for (name, entry) in entries.iter().filter(|(name, _)| *name != "__metadata__") {
        let offset = |i: usize| entry.get("data_offsets")?.get(i)?.as_u64();
        match (offset(0), offset(1)) {
            (Some(start), Some(end)) if start <= end && end <= data => {}
            _ => {
                return Err(malformed(format!("data_offsets of `{}` outside the file's {data} bytes of data", short(name))));
            }
        }
    }
    Ok(())
}

fn rows_heads(name: &'static str, view: &TensorView<'_>) -> Result<[usize; 2]> {
    if !matches!(view.dtype(), Dtype::F8_E4M3 | Dtype::BF16 | Dtype::F16 | Dtype::F32) {
        return Err(Error::shape(name, "dtype F8_E4M3, BF16, F16 or F32", format!("{:?}", view.dtype())));
    }
    match *view.shape() {
        [rows, heads, HEAD_DIM] => Ok([rows, heads]),
        _ => Err(Error::shape(name, "[tokens, heads, 128]", format!("{:?}", view.shape()))),
    }
}

/// e4m3 codes. A NaN among them would spread over whole rows of the output, as it would from a wider type.
fn codes(name: &'static str, view: &TensorView<'_>) -> Result<Vec<F8E4M3>> {
    if let Some(i) = view.data().iter().position(|&b| b & 0x7F == 0x7F) {
        return Err(Error::value(name, "finite elements", format!("NaN at {i}")));
    }
    Ok(view.data().iter().map(|&b| F8E4M3::from_bits(b)).collect())
}

/// BF16, F16 or F32 little-endian data as f32; the file does not align it.
fn reals(name: &'static str, view: &TensorView<'_>) -> Result<Vec<f32>> {
    let pairs = view.data().as_chunks::<2>().0;
    Ok(match view.dtype() {
        Dtype::BF16 => pairs.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F16 => pairs.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F32 => view.data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        other => return Err(Error::shape(name, "dtype F8_E4M3, BF16, F16 or F32", format!("{other:?}"))),
    })
}

fn scales(name: &'static str, view: Option<TensorView<'_>>, shapes: &[&[usize]]) -> Result<Option<Vec<f32>>> {
    let Some(view) = view else { return Ok(None) };
    if view.dtype() != Dtype::F32 {
        return Err(Error::shape(name, "dtype F32", format!("{:?}", view.dtype())));
    }
    if !shapes.contains(&view.shape()) {
        let expected: Vec<_> = shapes.iter().map(|s| format!("{s:?}")).collect();
        return Err(Error::shape(name, expected.join(" or "), format!("{:?}", view.shape())));
    }
    reals(name, &view).map(Some)
}

fn no_scale(name: &'static str, of: &str, view: Option<TensorView<'_>>, dtype: Dtype) -> Result<()> {
    match view {
        None => Ok(()),
        Some(_) => Err(Error::shape(name, format!("no tensor of this name, as {of} is {dtype:?} and is quantised here"), "one")),
    }
}

/// `block_mask` U8 [Hq, Qb, Kb] as lists; a block is kept where the byte is not 0. Blocks above the diagonal hold no
/// visible key and are dropped.
fn mask_lists(view: &TensorView<'_>, g: &Shape) -> Result<BlockLists> {
    if view.dtype() != Dtype::U8 {
        return Err(Error::shape("block_mask", "dtype U8", format!("{:?}", view.dtype())));
    }
    let shape = [g.hq, g.qb(), g.kb()];
    if view.shape() != shape {
        return Err(Error::shape("block_mask", format!("{shape:?}"), format!("{:?}", view.shape())));
    }
    BlockLists::from_mask(view.data(), shape, g.hq, &g.geometry()?)
}
