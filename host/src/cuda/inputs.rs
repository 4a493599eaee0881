//! Host tensors in device memory: packed queries, K and V in scattered pages.

use crate::driver::{CudaSlice, CudaStream, buffer};
use crate::error::Result;
use crate::kv::{PageLayout, PagedTensors};
use crate::ops::PageDesc;
use crate::plan::{ListTensors, PrefillTensors};
use crate::tensor::PrefillInputs;
use float8::F8E4M3;
use std::sync::Arc;

/// The tensors of one call, owned in device memory.
#[derive(Debug)]
pub struct DeviceInputs {
    q: CudaSlice<F8E4M3>,
    q_scale: CudaSlice<f32>,
    k_pages: CudaSlice<F8E4M3>,
    v_pages: CudaSlice<F8E4M3>,
    page_table: CudaSlice<i32>,
    k_scale: CudaSlice<f32>,
    v_scale: CudaSlice<f32>,
    k_token_scale: Option<CudaSlice<f32>>,
    lists: Option<(CudaSlice<i32>, CudaSlice<i32>)>,
    pages: PageDesc,
}

impl DeviceInputs {
    /// Pages K and V and copies everything to the device. The pages are handed out in scattered order, as in a cache that
    /// has been in use, so that results and timings do not profit from neighbouring pages.
    ///
    /// # Errors
    /// Any error of [`PagedTensors::build`]; [`crate::Error::Driver`].
    pub fn upload(stream: &Arc<CudaStream>, inputs: &PrefillInputs<'_>, page_size: usize, layout: PageLayout) -> Result<Self> {
        let needed = inputs.cu_seqlens_kv.windows(2).map(|w| (w[1].saturating_sub(w[0]).max(0) as usize).div_ceil(page_size.max(1))).sum();
        let order = scattered(needed);
        let paged = PagedTensors::build(inputs.k, inputs.v, inputs.hkv, inputs.cu_seqlens_kv, page_size, layout, Some(&order))?;
        let paged = match inputs.k_token_scale() {
            Some(scales) => paged.with_token_scales(scales, inputs.cu_seqlens_kv, layout, false)?,
            None => paged,
        };
        let (strides, k_token_scales) = (paged.strides, paged.k_token_scales);
        let k_token_scale = if paged.k_token.is_empty() { None } else { Some(buffer::upload(stream, &paged.k_token)?) };
        Ok(Self {
            q: buffer::upload(stream, inputs.q)?,
            q_scale: buffer::upload(stream, inputs.q_scale)?,
            k_pages: buffer::upload(stream, &paged.k_pages)?,
            v_pages: buffer::upload(stream, &paged.v_pages)?,
            page_table: buffer::upload(stream, &paged.table)?,
            k_scale: buffer::upload(stream, inputs.k_head_scale())?,
            v_scale: buffer::upload(stream, inputs.v_scale)?,
            k_token_scale,
            lists: None,
            pages: PageDesc {
                page_size,
                pages: paged.pages,
                k_strides: strides,
                v_strides: strides,
                table_stride: paged.table_stride,
                k_token_scales,
            },
        })
    }

    /// Attends to these lists and counts, as [`crate::plan::Plan::upload_lists`] gives them.
    pub fn set_lists(&mut self, lists: Option<(CudaSlice<i32>, CudaSlice<i32>)>) {
        self.lists = lists;
    }

    /// Shape of the pages and the page table.
    pub fn pages(&self) -> PageDesc {
        self.pages
    }

    /// Views for a run.
    pub fn tensors(&self) -> PrefillTensors<'_> {
        PrefillTensors {
            q: self.q.as_view(),
            q_scale: self.q_scale.as_view(),
            k_pages: self.k_pages.as_view(),
            v_pages: self.v_pages.as_view(),
            page_table: self.page_table.as_view(),
            k_scale: self.k_scale.as_view(),
            v_scale: self.v_scale.as_view(),
            k_token_scale: self.k_token_scale.as_ref().map(|s| s.as_view()),
            lists: self.lists.as_ref().map(|(lists, counts)| ListTensors { lists: lists.as_view(), counts: counts.as_view() }),
        }
    }
}

/// A permutation of `0..n` that puts neighbours far apart: multiples of a step near n / 1.618 that shares no factor with n.
fn scattered(n: usize) -> Vec<i32> {
    let mut step = (n as f64 / 1.618) as usize;
    while gcd(step, n) != 1 && step < n {
        step += 1;
    }
    let mut at = 0;
    (0..n)
        .map(|_| {
            let page = at;
            at = (at + step) % n;
            page as i32
        })
        .collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_orders_are_permutations() {
        for n in 0..300 {
            let mut order = scattered(n);
            assert!(n < 8 || order.windows(2).all(|w| w[0].abs_diff(w[1]) > 1), "{n}: neighbours stay together");
            order.sort_unstable();
            assert!(order.into_iter().eq(0..n as i32), "{n}");
        }
    }
}
