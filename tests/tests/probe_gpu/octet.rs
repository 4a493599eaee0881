//! Sums of octets: within their bound of the true ones, exact where they can be, and a block's own whatever lies
//! beside it.

use crate::model::{e4m3_code, e4m3_value};
use crate::{address, launch, rng};
use half::bf16;
use rand::RngExt;
use rand::rngs::StdRng;
use rand_distr::StandardNormal;
use rstest::rstest;
use stem_attn::driver::Launch;
use stem_attn_kernels::abi_probe::ProbeParams;
use stem_attn_kernels::layout::octet::BLOCKS;
use stem_attn_tests::gpu::{Gpu, gpu};

const DIMS: usize = 128;
const TOKENS: usize = 8;
const OCTET: usize = BLOCKS as usize;

/// Eight tokens of one query block.
#[derive(Clone)]
struct Block {
    codes: [[u8; DIMS]; TOKENS],
    scales: [f32; TOKENS],
}

/// A code that is a number.
fn number(rng: &mut StdRng) -> u8 {
    let code: u8 = rng.random();
    if code & 0x7f == 0x7f { 0 } else { code }
}

impl Block {
    /// Scales around `2^exponent`, up to `2^-spread` of each other; some are 0 or negative, and some tokens are not there.
    fn random(rng: &mut StdRng, exponent: i32, spread: i32) -> Self {
        let missing = if rng.random_bool(0.2) { rng.random_range(0..=TOKENS) } else { TOKENS };
        let mut block = Self { codes: [[0; DIMS]; TOKENS], scales: [0.0; TOKENS] };
        let ordinary = rng.random_bool(0.5);
        for token in 0..missing {
            // Half of the dimensions of some tokens are zeros: there the largest scales need not count.
            let first = if rng.random_bool(0.4) { DIMS / 2 } else { 0 };
            block.codes[token] = std::array::from_fn(|d| match ordinary {
                _ if d < first => 0,
                true => e4m3_code(rng.sample::<f32, _>(StandardNormal) * 16.0),
                false => number(rng),
            });
            let size = f64::from(exponent - rng.random_range(0..=spread)).exp2() * rng.random_range(1.0..2.0);
            block.scales[token] = match rng.random_range(0..20) {
                0 => 0.0,
                1 => -0.0,
                2 => -size as f32,
                _ => size as f32,
            };
        }
        block
    }

    /// One of any size.
    fn any(rng: &mut StdRng) -> Self {
        let spread = [0, 3, 20, 45, 200][rng.random_range(0..5)];
        let exponent = rng.random_range(-60..60);
        Self::random(rng, exponent, spread)
    }

    /// The true sum of a dimension, the sum of its terms' magnitudes, and the block's largest scale times the codes' magnitudes, of
    /// which every code that is not 0 counts as 8 at least.
    fn model(&self, d: usize) -> [f64; 3] {
        let terms = self.codes.iter().zip(self.scales).map(|(codes, scale)| (e4m3_value(codes[d]), f64::from(scale)));
        let largest = self.scales.iter().fold(0.0, |m: f64, &x| m.max(f64::from(x).abs()));
        terms.fold([0.0; 3], |[sum, all, codes], (code, scale)| {
            let size = if code == 0.0 { 0.0 } else { code.abs().max(8.0) };
            [sum + code * scale, all + (code * scale).abs(), codes + size * largest]
        })
    }
}

/// The sums of blocks, a multiple of eight of them.
fn sums(gpu: &Gpu, blocks: &[Block]) -> Vec<[bf16; DIMS]> {
    assert!(blocks.len().is_multiple_of(OCTET));
    let codes: Vec<u8> = blocks.iter().flat_map(|b| b.codes.as_flattened().iter().copied()).collect();
    let scales: Vec<f32> = blocks.iter().flat_map(|b| b.scales).collect();
    let len = blocks.len() * DIMS;
    let (a, b, out) = (gpu.upload(&codes), gpu.upload(&scales), gpu.poisoned::<bf16>(len));
    let params = ProbeParams {
        a: address(gpu, &a),
        b: address(gpu, &b),
        out: address(gpu, &out),
        count: (blocks.len() / OCTET) as i32,
        ..Default::default()
    };
    launch(gpu, "probe_octet", Launch::grid(1, 1, 1), &params, None);
    gpu.download(&out, len).as_chunks().0.to_vec()
}

/// Half of a unit in the last place of a normal bf16 number of `x`'s size. Never less for larger `x`.
fn half_unit(x: f64) -> f64 {
    assert!(x >= 0.0);
    let exponent = (x.to_bits() >> 52) as i32 - 1023;
    2f64.powi(exponent - 8)
}

fn bits(sums: &[bf16; DIMS]) -> [u16; DIMS] {
    sums.map(bf16::to_bits)
}

#[test]
fn half_units_are_what_rounding_takes() {
    for x in [1.0, 1.9375, 2.0, 0.75, 3e30, 1e-30f64] {
        let x = bf16::from_f64(x);
        let next = bf16::from_bits(x.to_bits() + 1);
        assert_eq!(next.to_f64() - x.to_f64(), 2.0 * half_unit(x.to_f64()), "{x}");
    }
    assert!(half_unit(0.0) < 2f64.powi(-1000));
}

#[test]
fn whole_numbers_are_exact() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("octet_integers");
    let blocks: Vec<Block> = (0..OCTET * 9)
        .map(|_| {
            let base = rng.random_range(-40..40);
            let codes = std::array::from_fn(|_| std::array::from_fn(|_| e4m3_code(rng.random_range(-16..=16) as f32)));
            Block { codes, scales: std::array::from_fn(|_| f64::from(base + rng.random_range(-1..=1)).exp2() as f32) }
        })
        .collect();
    for (i, (block, got)) in blocks.iter().zip(sums(&gpu, &blocks)).enumerate() {
        for (d, got) in got.into_iter().enumerate() {
            // At most 2^8 in steps of 2^-1, times the base: f16 holds it, so there is one rounding.
            let want = bf16::from_f32(block.model(d)[0] as f32);
            assert_eq!(got, want, "block {i}, dimension {d}");
        }
    }
}

/// - f16 has 11 bits: a scale and each of eight sums of at most all terms are off by 2^-11 of themselves.
/// - Where they are subnormal, spaced 2^-24, by 2^-25: of a largest scale that is at least 2^3, 2^-28 for each unit of code, and, for the
///   sums, as much for each term, whatever its code.
/// - bf16 has 8 bits: rounding moves the computed sum by half a unit in its last place at most, [`half_unit`], between 2^-9 and 2^-8 of
///   it. It is rounded while it is normalised, whatever becomes of it, and once more, to a multiple of 2^-133, where undoing the
///   normalisation makes a subnormal number.
#[rstest]
#[case::ordinary(-8, 8, 4)]
#[case::any(-100, 100, 40)]
#[case::far_apart(-20, 20, 120)]
#[case::subnormal(-149, -110, 10)]
#[case::huge(105, 127, 10)]
fn sums_are_within_their_bound(#[case] least: i32, #[case] most: i32, #[case] spread: i32) {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("octet");
    let blocks: Vec<Block> = (0..OCTET * 41)
        .map(|_| {
            let exponent = rng.random_range(least..most);
            Block::random(&mut rng, exponent, spread)
        })
        .collect();
    let mut worst = 0f64;
    for (i, (block, got)) in blocks.iter().zip(sums(&gpu, &blocks)).enumerate() {
        for (d, got) in got.into_iter().enumerate() {
            let ([want, terms, codes], got) = (block.model(d), got.to_f64());
            let before = terms * 9.0 / 2048.0 + codes * 2f64.powi(-27);
            let bound = before + half_unit(want.abs() + before) + 2f64.powi(-134);
            if want.abs() + bound >= bf16::MAX.to_f64() && got.is_infinite() {
                assert_eq!(got.signum(), want.signum(), "block {i}, dimension {d}: overflow");
                continue;
            }
            worst = worst.max((got - want).abs() / bound);
            assert!((got - want).abs() <= bound, "block {i}, dimension {d}: {got:e} instead of {want:e}, {:?}", block.scales);
        }
    }
    println!("octet: largest error {worst:.3} of the bound");
}

#[test]
fn a_block_has_the_same_bits_in_every_place() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("octet_places");
    for round in 0..16 {
        let block = Block::any(&mut rng);
        let blocks: Vec<Block> = (0..OCTET * OCTET)
            .map(|i| {
                let mut neighbour = Block::any(&mut rng);
                if round % 2 == 1 {
                    neighbour.codes[rng.random_range(0..TOKENS)][rng.random_range(0..DIMS)] = 0x7f;
                }
                if i / OCTET == i % OCTET { block.clone() } else { neighbour }
            })
            .collect();
        let got = sums(&gpu, &blocks);
        let alone = sums(&gpu, &vec![block; OCTET]);
        for place in 0..OCTET {
            let got = bits(&got[place * OCTET + place]);
            assert_eq!(got, bits(&alone[0]), "round {round}, place {place}");
            assert_eq!(bits(&alone[place]), bits(&alone[0]), "round {round}, place {place}, beside itself");
        }
    }
}

#[test]
fn nan_codes_spoil_their_own_dimensions() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("octet_nan");
    let whole: Vec<Block> = (0..OCTET * 64).map(|_| Block::any(&mut rng)).collect();
    let mut spoiled = whole.clone();
    let mut nan = vec![[false; DIMS]; whole.len()];
    for (octet, blocks) in spoiled.chunks_mut(OCTET).enumerate() {
        for _ in 0..octet % 4 {
            let (block, token, d) = (rng.random_range(0..OCTET), rng.random_range(0..TOKENS), rng.random_range(0..DIMS));
            blocks[block].codes[token][d] = if rng.random() { 0x7f } else { 0xff };
            nan[octet * OCTET + block][d] = true;
        }
    }
    let (want, got) = (sums(&gpu, &whole), sums(&gpu, &spoiled));
    for (i, (want, got)) in want.iter().zip(&got).enumerate() {
        for d in 0..DIMS {
            if nan[i][d] {
                assert!(got[d].is_nan(), "block {i}, dimension {d}: {:?}", got[d]);
            } else {
                assert_eq!(got[d].to_bits(), want[d].to_bits(), "block {i}, dimension {d}");
            }
        }
    }
}

#[test]
fn scales_that_are_not_finite_spoil_their_own_block() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("octet_scales");
    let whole: Vec<Block> = (0..OCTET * 32).map(|_| Block::any(&mut rng)).collect();
    let mut spoiled = whole.clone();
    let mut chosen = Vec::new();
    for (octet, blocks) in spoiled.chunks_mut(OCTET).enumerate() {
        let block = octet % OCTET;
        blocks[block].scales[rng.random_range(0..TOKENS)] = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN][octet % 4];
        chosen.push(octet * OCTET + block);
    }
    let (want, got) = (sums(&gpu, &whole), sums(&gpu, &spoiled));
    for (i, (want, got)) in want.iter().zip(&got).enumerate() {
        if chosen.contains(&i) {
            assert!(got.iter().all(|x| !x.is_finite()), "block {i}: {got:?}");
        } else {
            assert_eq!(bits(got), bits(want), "block {i}");
        }
    }
}

#[test]
fn nothing_sums_to_zero() {
    let Some(gpu) = gpu() else { return };
    let mut rng = rng("octet_zero");
    let blocks: Vec<Block> = (0..OCTET * 4)
        .map(|i| {
            let mut block = Block::any(&mut rng);
            match i % 4 {
                0 => block.scales = [0.0; TOKENS],
                1 => block.scales = [-0.0; TOKENS],
                2 => block.codes = [[0; DIMS]; TOKENS],
                _ => block = Block { codes: [[0; DIMS]; TOKENS], scales: [0.0; TOKENS] },
            }
            block
        })
        .collect();
    for (i, got) in sums(&gpu, &blocks).iter().enumerate() {
        assert!(got.iter().all(|&x| x == bf16::ZERO), "block {i}: {got:?}");
    }
}
