//! Parameter blocks shared by device and host. `#[repr(C)]`, plain data; pointers travel as `u64` device addresses.
//!
//! Naming of dimensions: `total_q` query tokens over all requests, `total_qb` query blocks, `total_kb` key blocks,
//! `hq`/`hkv` heads. A request's query blocks are cut at absolute multiples of 128 of its sequence (history included),
//! so its first and last block may be partial (stem.md, section 5).

/// One request of a batch.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Row of its first new token in `q`, `q_scale`, `out`, `lse`.
    pub q_start: i32,
    /// New tokens of this chunk (may be 0).
    pub q_len: i32,
    /// Visible KV tokens, this chunk included; at least `q_len` when causal.
    pub kv_len: i32,
    /// Index of its first query block among all query blocks.
    pub qb_start: i32,
    /// Number of its query blocks: `ceil(kv_len/128) - (kv_len - q_len)/128`, or 0 when `q_len` is 0.
    pub qb_len: i32,
    /// Index of its first key block among all key blocks (key sums, run norms and V tiles are indexed so). A request has room for
    /// the blocks of its whole prompt.
    pub kb_start: i32,
    /// Number of its key blocks: `ceil(kv_len/128)`.
    pub kb_len: i32,
    /// Absolute index of its first query block: `(kv_len - q_len)/128`.
    pub first_block: i32,
}

/// One query block: which request, which block of it, and how many key blocks it may keep.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueryBlock {
    /// Index of the request.
    pub request: i32,
    /// Absolute block index in the sequence: covers tokens `128 * block ..`.
    pub block: i32,
    /// Budget of key blocks (Token Position Decay), at least 1.
    pub budget: i32,
    /// Padding to 16 bytes; zero.
    pub reserved: i32,
}

/// One key block: which request and which block of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyBlock {
    /// Index of the request.
    pub request: i32,
    /// Block index in the sequence: covers tokens `128 * block ..`.
    pub block: i32,
}

/// Byte strides of a paged tensor; rows of 128 bytes are contiguous. NHD: token = hkv*128, head = 128.
/// HND: head = page_size*128, token = 128.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageStrides {
    /// Bytes from one page to the next.
    pub page: i64,
    /// Bytes from one token of a page to the next.
    pub token: i64,
    /// Bytes from one head to the next.
    pub head: i64,
}

/// Byte strides of a `[tokens, heads, 128]` tensor, whose rows of 128 are contiguous, or of one `[tokens, heads]`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowStrides {
    /// Bytes from one token to the next.
    pub token: i64,
    /// Bytes from one head to the next.
    pub head: i64,
}

/// Byte strides of the f32 scales per token and head of a paged tensor: the scale of token t of page p and head h lies
/// `p * page + t / 32 * chunk + t % 32 * token + h * head` bytes after the first. In chunks of 32, because 32 scales fill one
/// 128-byte row of a page that holds its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScaleStrides {
    /// Bytes from one page to the next.
    pub page: i64,
    /// Bytes from one chunk of 32 tokens of a page to the next.
    pub chunk: i64,
    /// Bytes from one token of a chunk to the next.
    pub token: i64,
    /// Bytes from one head to the next.
    pub head: i64,
}

/// K scales per token and head, which multiply the scale of the tensor or head.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenScales {
    /// The first f32; 0 where there are none.
    pub first: u64,
    /// Where the others are.
    pub strides: ScaleStrides,
    /// Pages that have scales: tokens of a page-table entry outside `0..pages` have the scale 0.
    pub pages: i32,
    /// Zero.
    pub reserved: i32,
}

/// `append_kv_bf16_d128`: bf16 K and V of the new tokens to e4m3 pages. Grid (total_qb, hkv), 128 threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AppendKvParams {
    /// bf16 `[total_q, hkv, 128]` with strides `k_rows`.
    pub k: u64,
    /// bf16 `[total_q, hkv, 128]` with strides `v_rows`.
    pub v: u64,
    /// e4m3 pages.
    pub k_pages: u64,
    /// e4m3 pages.
    pub v_pages: u64,
    /// i32 `[batch, table_stride]`.
    pub page_table: u64,
    /// [`Request`] `[batch]`.
    pub requests: u64,
    /// [`QueryBlock`] `[total_qb]`.
    pub query_blocks: u64,
    /// f32 `[1]` or `[hkv]`: real = code * scale.
    pub k_scale: u64,
    /// f32 `[1]` or `[hkv]`.
    pub v_scale: u64,
    /// Strides of the K pages.
    pub k_strides: PageStrides,
    /// Strides of the V pages.
    pub v_strides: PageStrides,
    /// Strides of `k`.
    pub k_rows: RowStrides,
    /// Strides of `v`.
    pub v_rows: RowStrides,
    /// Out, where there are any: `amax / 448` of each new key over `k_scale`, which its codes are divided by too.
    pub k_token: TokenScales,
    /// 0: one K scale for all heads; 1: one per head.
    pub k_scale_stride: i32,
    /// 0: one V scale for all heads; 1: one per head.
    pub v_scale_stride: i32,
    /// Tokens in a page: a power of two from 16 to 256.
    pub page_size: i32,
    /// Entries of one request in the page table.
    pub table_stride: i32,
    /// Number of pages: entries outside `0..pages` are skipped.
    pub pages: i32,
    /// Zero.
    pub reserved: i32,
}

/// `summarize_kv_fp8_d128`: key sums, run norms and transposed V tiles of key blocks: all of them, or those with new tokens, which
/// are the query blocks. Grid (hkv, y, z) with at least `count` y-z pairs, [`crate::config::summarize_kv::THREADS`] threads: the heads
/// of a block, whose rows lie side by side in a page, are read at the same time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SummarizeKvParams {
    /// e4m3 pages.
    pub k_pages: u64,
    /// e4m3 pages.
    pub v_pages: u64,
    /// i32 `[batch, table_stride]`.
    pub page_table: u64,
    /// [`Request`] `[batch]`.
    pub requests: u64,
    /// The blocks: [`KeyBlock`] `[total_kb]`, or [`QueryBlock`] `[total_qb]`, which begins with the same two numbers.
    pub blocks: u64,
    /// f32 `[1]` or `[hkv]`.
    pub k_scale: u64,
    /// f32 `[1]` or `[hkv]`.
    pub v_scale: u64,
    /// Out, or 0 to skip: bf16 `[hkv, total_kb, 16, 128]`, **group g stored at 15 - g**, so that the score is a plain dot product.
    pub k_sums: u64,
    /// Out, or 0 to skip: f32 `[hkv, total_kb, 8]`: ln(largest V norm of the run + 1e-6); an empty run gives ln(1e-6).
    pub run_norms: u64,
    /// Out: e4m3 codes `[total_kb, hkv, 16384]` in the order of [`crate::layout::v_tile_offset`]; tokens past `kv_len` are 0.
    pub v_tiles: u64,
    /// Strides of the K pages.
    pub k_strides: PageStrides,
    /// Strides of the V pages.
    pub v_strides: PageStrides,
    /// Scales of single keys, where there are any.
    pub k_token: TokenScales,
    /// 0: one K scale for all heads; 1: one per head.
    pub k_scale_stride: i32,
    /// 0: one V scale for all heads; 1: one per head.
    pub v_scale_stride: i32,
    /// Tokens in a page: a power of two from 16 to 256.
    pub page_size: i32,
    /// Entries of one request in the page table.
    pub table_stride: i32,
    /// Number of pages: tokens of an entry outside `0..pages` read as 0.
    pub pages: i32,
    /// Key blocks over all requests.
    pub total_kb: i32,
    /// KV heads.
    pub hkv: i32,
    /// Bytes from one entry of `blocks` to the next. 0: there is one request, `request`, and `blocks` and `requests` are not read.
    pub block_stride: i32,
    /// The one request: two look-ups less before the first page.
    pub request: Request,
    /// First of its blocks.
    pub first_block: i32,
    /// Number of blocks.
    pub count: i32,
}

/// `select_stem` (parameter 0; parameters 1 to 3 are tensor maps): from queries and summaries to block lists.
/// Grid `hq` times the strips of a head (or fewer, a multiple of the cluster), [`crate::config::select::THREADS`] threads, in
/// clusters of heads that share a KV head.
///
/// Tensor maps of the key sums, 1 and 2: bf16, 3D `[2048, total_kb, hkv]`, box `[64, 64, 1]` and `[64, 128, 1]`, 128-byte swizzle, zero fill.
///
/// Tensor map of the queries, 3: bytes, 4D `[128, 16, q_mapped / 16, hq]` with the strides of 1 token, 16 tokens and 1 head, box
/// `[128, 1, 32, 1]`, 128-byte swizzle, zero fill. A copy from `(0, t % 16, t / 16, h)` brings tokens t, t + 16, .., t + 496 of head h.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SelectParams {
    /// e4m3 `[total_q, hq, 128]` with strides `q_rows`.
    pub q: u64,
    /// f32 `[total_q, hq]` with strides `q_scale_rows`.
    pub q_scale: u64,
    /// Strides of `q`.
    pub q_rows: RowStrides,
    /// Strides of `q_scale`; that of a token is below 2^31.
    pub q_scale_rows: RowStrides,
    /// [`Request`] `[batch]`.
    pub requests: u64,
    /// [`QueryBlock`] `[total_qb]`.
    pub query_blocks: u64,
    /// f32 `[hkv, total_kb, 8]`.
    pub run_norms: u64,
    /// Out: i32 `[hq, total_qb, list_stride]`, ascending key-block indices.
    pub lists: u64,
    /// Out: i32 `[hq, total_qb]`.
    pub counts: u64,
    /// Out, or 0: f32 rows of `score_stride` columns, `[hq, total_qb]` of them, or `[blocks of the grid, 32]` where
    /// `scores_by_block` is 1: scratch of rows that are longer than shared memory holds.
    pub scores: u64,
    /// Weight of the anti-diagonal sum.
    pub qk_scale: f32,
    /// Weight of the value term.
    pub lambda: f32,
    /// 1: round the score to bf16 (preset hpc).
    pub round_bf16: i32,
    /// 1: mean and deviation over every run of the padded length (preset hpc); 0: over runs with a token.
    pub count_empty_runs: i32,
    /// 1: candidates end at the diagonal block.
    pub causal: i32,
    /// First blocks always kept.
    pub sink: i32,
    /// Last blocks up to and including the diagonal always kept (at least 1).
    pub window: i32,
    /// 0: guards inside the budget; 1: on top of it.
    pub guards_on_top: i32,
    /// 0: exact count, ties to the lower index; 1: every tie kept.
    pub keep_all_ties: i32,
    /// Windows of query blocks ([`crate::layout::windows`]), a strip or more each.
    pub windows: i32,
    /// Of these, windows of [`crate::config::select::ROWS`] rows: the first.
    pub long_windows: i32,
    /// Rows of each of the others, at most as many.
    pub window_rows: i32,
    /// Columns of a row of `scores`.
    pub score_stride: i32,
    /// 1: `scores` has rows for each block of the grid, and is scratch; 0: for every query block.
    pub scores_by_block: i32,
    /// Entries of a list, at least the largest possible count.
    pub list_stride: i32,
    /// Query heads.
    pub hq: i32,
    /// Query heads per KV head.
    pub group: i32,
    /// Query blocks over all requests.
    pub total_qb: i32,
    /// Key blocks over all requests.
    pub total_kb: i32,
    /// New tokens, from the first of the batch, that the tensor map of the queries reaches: a multiple of 16; 0: none.
    pub q_mapped: i32,
}

/// `select_probe_means`: e4m3 means of every 8 keys of key blocks, all of them or those with new tokens. Grid (blocks, hkv),
/// [`crate::config::probe_sel::MEANS_THREADS`] threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ProbeMeansParams {
    /// e4m3 pages.
    pub k_pages: u64,
    /// i32 `[batch, table_stride]`.
    pub page_table: u64,
    /// [`Request`] `[batch]`.
    pub requests: u64,
    /// The blocks: [`KeyBlock`] `[total_kb]`, or [`QueryBlock`] `[total_qb]`, which begins with the same two numbers.
    pub blocks: u64,
    /// Out: e4m3 codes `[hkv, tiles, 32768]` in the order of [`crate::layout::probe_sel::mean_offset`], in units of the K codes.
    /// Key blocks that a request does not have are left as they are.
    pub k_tiles: u64,
    /// Strides of the K pages.
    pub k_strides: PageStrides,
    /// Tokens in a page: a power of two from 16 to 256.
    pub page_size: i32,
    /// Entries of one request in the page table.
    pub table_stride: i32,
    /// Number of pages: tokens of an entry outside `0..pages` read as 0.
    pub pages: i32,
    /// Tiles of one head: [`crate::layout::probe_sel::tiles`].
    pub tiles: i32,
    /// Bytes from one entry of `blocks` to the next.
    pub block_stride: i32,
    /// Zero.
    pub reserved: i32,
}

/// `select_probe_lists`: scores of every block pair from pooled queries and keys, and the lists they lead to.
/// Grid (up to one block a multiprocessor), [`crate::config::probe_sel::THREADS`] threads. Persistent: of the strips of all requests and
/// heads, each request's from the longest rows to the shortest, every block takes one of each round
/// ([`crate::layout::probe_sel::item`]). Their number fits i32.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SelectProbeParams {
    /// e4m3 `[total_q, hq, 128]` with strides `q_rows`.
    pub q: u64,
    /// f32 `[total_q, hq]` with strides `q_scale_rows`, positive.
    pub q_scale: u64,
    /// Strides of `q`.
    pub q_rows: RowStrides,
    /// Strides of `q_scale`.
    pub q_scale_rows: RowStrides,
    /// f32 `[1]` or `[hkv]`.
    pub k_scale: u64,
    /// [`Request`] `[batch]`; no `kb_len` above [`crate::config::probe_sel::MAX_BLOCKS`].
    pub requests: u64,
    /// [`QueryBlock`] `[total_qb]`.
    pub query_blocks: u64,
    /// From `select_probe_means`.
    pub k_tiles: u64,
    /// Out: i32 `[hq, total_qb, list_stride]`, ascending key-block indices.
    pub lists: u64,
    /// Out: i32 `[hq, total_qb]`.
    pub counts: u64,
    /// Out, or 0: f32 `[hq, total_qb, score_stride]`, base-2 logarithms; only columns that the row may see are written.
    pub scores: u64,
    /// `log2(e)` times the softmax scale.
    pub softmax_scale_log2: f32,
    /// Query heads.
    pub hq: i32,
    /// Query heads per KV head.
    pub group: i32,
    /// Query blocks over all requests.
    pub total_qb: i32,
    /// Tiles of one KV head.
    pub tiles: i32,
    /// Entries of a list, at least the largest possible count.
    pub list_stride: i32,
    /// Columns of a score row where scores are written.
    pub score_stride: i32,
    /// log2 of the queries in a group (0 to 3).
    pub query_pool_log2: i32,
    /// 1: causal, bottom-right aligned.
    pub causal: i32,
    /// First blocks always kept.
    pub sink: i32,
    /// Last blocks up to and including the diagonal always kept (at least 1).
    pub window: i32,
    /// 0: guards inside the budget; 1: on top of it.
    pub guards_on_top: i32,
    /// 0: exact count, ties to the lower index; 1: every tie kept.
    pub keep_all_ties: i32,
    /// 0: one K scale for all heads; 1: one per head.
    pub k_scale_stride: i32,
    /// Requests.
    pub batch: i32,
    /// 1: some request has more than [`crate::config::probe_sel::SHORT_BLOCKS`] key blocks. (A parameter of 128 bytes would pass for
    /// a tensor map.)
    pub long_rows: i32,
}

/// `attend_fp8_d128` and `attend_fp8_d128_token_scales` (parameter 0; parameters 1 and 2 are the tensor maps of Q and of the K
/// pages; the second entry's parameter 3 is its [`TokenScales`]).
/// Grid (up to one block a multiprocessor), [`crate::config::attend::THREADS`] threads. Persistent: of the `hq * total_qb` items, from the
/// longest rows to the shortest, every block takes one of each round (`pipeline::work`). `hq * total_qb` fits i32.
///
/// Tensor map of Q: u8, 3D `[128, hq, total_q]`, box `[128, 1, 128]`, 128-byte swizzle, zero fill.
/// Tensor map of K: u8, 4D `[128, page_size, hkv, pages]`, box `[128, min(page_size, 128), 1, 1]`, 128-byte swizzle, zero fill.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct AttendParams {
    /// f32 `[total_q, hq]` with strides `q_scale_rows`, positive.
    pub q_scale: u64,
    /// f32 `[1]` or `[hkv]`.
    pub k_scale: u64,
    /// f32 `[1]` or `[hkv]`.
    pub v_scale: u64,
    /// i32 `[batch, table_stride]`.
    pub page_table: u64,
    /// e4m3 codes `[total_kb, hkv, 16384]` from `summarize_kv`.
    pub v_tiles: u64,
    /// i32 `[hq, total_qb, list_stride]` ascending, or 0: every visible block (dense).
    pub lists: u64,
    /// i32 `[hq, total_qb]`, or 0 when dense.
    pub counts: u64,
    /// [`QueryBlock`] `[total_qb]`.
    pub query_blocks: u64,
    /// [`Request`] `[batch]`.
    pub requests: u64,
    /// Out: bf16 `[total_q, hq, 128]` with strides `out_rows`.
    pub out: u64,
    /// Out: f32 `[total_q, hq]` natural log-sum-exp, or 0.
    pub lse: u64,
    /// Strides of `out`.
    pub out_rows: RowStrides,
    /// Strides of `q_scale`.
    pub q_scale_rows: RowStrides,
    /// `log2(e) / sqrt(128)` or the caller's softmax scale times log2(e).
    pub softmax_scale_log2: f32,
    /// Query heads.
    pub hq: i32,
    /// KV heads.
    pub hkv: i32,
    /// Query heads per KV head.
    pub group: i32,
    /// Query blocks over all requests.
    pub total_qb: i32,
    /// Entries of a list.
    pub list_stride: i32,
    /// Entries of one request in the page table.
    pub table_stride: i32,
    /// log2 of the tokens in a page (4 to 8).
    pub page_size_log2: i32,
    /// 1: causal, bottom-right aligned.
    pub causal: i32,
    /// 0: one K scale for all heads; 1: one per head.
    pub k_scale_stride: i32,
    /// 0: one V scale for all heads; 1: one per head.
    pub v_scale_stride: i32,
    /// Zero.
    pub reserved: i32,
}

/// Rows of block lists to be written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ListRows {
    /// [`QueryBlock`] `[total_qb]`.
    pub query_blocks: u64,
    /// [`Request`] `[batch]`.
    pub requests: u64,
    /// Out: i32 `[hq, total_qb, list_stride]`, ascending key-block indices.
    pub lists: u64,
    /// Out: i32 `[hq, total_qb]`.
    pub counts: u64,
    /// Entries of a list; of a row that has more, the first are kept.
    pub list_stride: i32,
    /// Query blocks over all requests.
    pub total_qb: i32,
    /// 1: a row sees the key blocks up to its own.
    pub causal: i32,
    /// Zero.
    pub reserved: i32,
}

/// `lists_from_mask`: lists of the bytes that are not 0. Grid (total_qb, hq), [`crate::config::lists::THREADS`] threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct MaskListsParams {
    /// u8 `[hq, total_qb, columns]`; column j is key block j of the row's request.
    pub mask: u64,
    /// The lists.
    pub rows: ListRows,
    /// Bytes of a row, at least 1.
    pub columns: i32,
    /// Zero.
    pub reserved: i32,
}

/// `lists_from_csr`: lists of compressed sparse rows. Grid (total_qb, hq), [`crate::config::lists::THREADS`] threads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CsrListsParams {
    /// `[hq * total_qb + 1]` offsets into the indices; i32, or i64 where `wide`.
    pub indptr: u64,
    /// i32 `[entries]` key-block indices of the row's request, in any order.
    pub indices: u64,
    /// The lists.
    pub rows: ListRows,
    /// Indices.
    pub entries: i64,
    /// 1: the offsets are i64.
    pub wide: i32,
    /// Zero.
    pub reserved: i32,
}

const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<Request>() == 32);
    assert!(size_of::<QueryBlock>() == 16);
    assert!(size_of::<KeyBlock>() == 8);
    assert!(size_of::<PageStrides>() == 24);
    assert!(size_of::<ScaleStrides>() == 32);
    assert!(size_of::<TokenScales>() == 48);
    assert!(size_of::<RowStrides>() == 16);
    assert!(size_of::<AppendKvParams>() == 224 && offset_of!(AppendKvParams, k_strides) == 72);
    assert!(size_of::<SummarizeKvParams>() == 248 && offset_of!(SummarizeKvParams, k_strides) == 80);
    assert!(size_of::<SelectParams>() == 176 && offset_of!(SelectParams, qk_scale) == 96);
    assert!(size_of::<ProbeMeansParams>() == 88 && offset_of!(ProbeMeansParams, k_strides) == 40);
    assert!(size_of::<SelectProbeParams>() == 168 && offset_of!(SelectProbeParams, softmax_scale_log2) == 104);
    assert!(size_of::<ListRows>() == 48);
    assert!(size_of::<MaskListsParams>() == 64);
    assert!(size_of::<CsrListsParams>() == 80);
    assert!(size_of::<AttendParams>() == 168 && offset_of!(AttendParams, softmax_scale_log2) == 120);
};
