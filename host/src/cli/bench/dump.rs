//! The tensors of a problem in a file that `stem prefill` and the peers' script read.

use super::problem::Problem;
use crate::error::{Error, Result};
use crate::mask::BlockLists;
use float8::F8E4M3;
use rayon::prelude::*;
use safetensors::{Dtype, tensor::TensorView};
use std::path::{Path, PathBuf};
use stem_attn_kernels::config::HEAD_DIM;

/// Writes `SEQ.safetensors` in `folder`: `q` `[T, hq, 128]`, `k` and `v` `[Tk, hkv, 128]`, their scales, and for each set of
/// lists, with its share skipped, `block_mask_SHARE` U8 `[hq, query blocks, key blocks]`.
pub fn write(folder: &Path, problem: &Problem, lists: &[(f64, &BlockLists)]) -> Result<PathBuf> {
    let shape = problem.shape;
    let path = folder.join(format!("{}.safetensors", shape.tokens));
    let failed = |e: &dyn std::fmt::Display| Error::value("dump", "a file that can be written", format!("{}: {e}", path.display()));
    let (q, k, v) = (bits(&problem.q), bits(&problem.k), bits(&problem.v));
    let q_scale: Vec<u8> = problem.q_scale.iter().flat_map(|x| x.to_le_bytes()).collect();
    let one = 1f32.to_le_bytes();
    let masks: Vec<(String, Vec<u8>)> =
        lists.iter().map(|(skip, lists)| Ok((format!("block_mask_{skip}"), lists.to_mask(shape.kb())?))).collect::<Result<_>>()?;
    let view = |dtype, extents: &[usize], data| TensorView::new(dtype, extents.to_vec(), data).map_err(|e| failed(&e));
    let mut tensors = vec![
        ("q", view(Dtype::F8_E4M3, &[shape.tokens, shape.hq, HEAD_DIM], &q)?),
        ("k", view(Dtype::F8_E4M3, &[shape.kv_tokens, shape.hkv, HEAD_DIM], &k)?),
        ("v", view(Dtype::F8_E4M3, &[shape.kv_tokens, shape.hkv, HEAD_DIM], &v)?),
        ("q_scale", view(Dtype::F32, &[shape.tokens, shape.hq], &q_scale)?),
        ("k_scale", view(Dtype::F32, &[1], &one)?),
        ("v_scale", view(Dtype::F32, &[1], &one)?),
    ];
    for (name, mask) in &masks {
        tensors.push((name, view(Dtype::U8, &[shape.hq, shape.qb(), shape.kb()], mask)?));
    }
    safetensors::serialize_to_file(tensors, None, &path).map_err(|e| failed(&e))?;
    Ok(path)
}

fn bits(codes: &[F8E4M3]) -> Vec<u8> {
    codes.par_iter().map(|code| code.to_bits()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::bench::problem::random_lists;
    use crate::cli::input::Input;
    use crate::cli::work::Shape;
    use safetensors::SafeTensors;

    #[test]
    fn a_dump_is_an_input_with_the_same_tensors_and_masks() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { tokens: 300, kv_tokens: 500, hq: 4, hkv: 2 };
        let problem = Problem::new(shape, 32, 5).unwrap();
        let geometry = shape.geometry().unwrap();
        let lists = random_lists(&geometry, 4, 0.5, 5).unwrap();
        let path = write(dir.path(), &problem, &[(0.5, &lists)]).unwrap();
        let input = Input::read(&path).unwrap();
        assert_eq!(input.shape, shape);
        assert!(input.q == problem.q && input.k == problem.k && input.v == problem.v && input.q_scale == problem.q_scale);
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let mask = file.tensor("block_mask_0.5").unwrap();
        let shape: [usize; 3] = mask.shape().try_into().unwrap();
        assert!(BlockLists::from_mask(mask.data(), shape, 4, &geometry).unwrap() == lists);
        assert!(write(&dir.path().join("none"), &problem, &[]).is_err());
    }
}
