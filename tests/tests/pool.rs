//! The page pool: nothing is lost, nothing is handed out twice, and a refused call changes nothing.

use proptest::prelude::*;
use std::collections::HashMap;
use stem_attn::Error;
use stem_attn::kv::{PagePool, PageTable, Sequence};

#[derive(Clone, Copy, Debug)]
enum Step {
    Alloc(usize),
    Grow(usize, usize),
    Share(usize, usize),
    Release(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0usize..200).prop_map(Step::Alloc),
        (any::<usize>(), 0usize..100).prop_map(|(i, n)| Step::Grow(i, n)),
        (any::<usize>(), 0usize..300).prop_map(|(i, n)| Step::Share(i, n)),
        any::<usize>().prop_map(Step::Release),
    ];
    proptest::collection::vec(step, 0..120)
}

/// Counts the holders of every page anew and compares with the pool's books.
fn check(pool: &PagePool, live: &[Sequence]) {
    let mut holders: HashMap<i32, u32> = HashMap::new();
    for sequence in live {
        assert_eq!(sequence.pages().len(), sequence.tokens().div_ceil(pool.page_size()));
        for &page in sequence.pages() {
            assert!((0..pool.total() as i32).contains(&page));
            *holders.entry(page).or_default() += 1;
        }
    }
    for page in 0..pool.total() as i32 {
        assert_eq!(pool.references(page), holders.get(&page).copied().unwrap_or(0), "page {page}");
    }
    assert_eq!(pool.free() + holders.len(), pool.total(), "every page is free or held");
    // A page that is not full may be written to, so only one sequence may hold it.
    for sequence in live {
        if sequence.tokens() % pool.page_size() != 0 {
            let last = *sequence.pages().last().expect("a partial page");
            assert_eq!(holders[&last], 1, "a partial page is shared");
        }
    }
}

proptest! {
    #[test]
    fn books_balance_after_every_step(pages in 0usize..40, log2 in 4u32..9, steps in steps()) {
        let mut pool = PagePool::new(pages, 1 << log2).expect("a pool");
        let mut live: Vec<Sequence> = Vec::new();
        for step in steps {
            let free = pool.free();
            match step {
                Step::Alloc(tokens) => match pool.alloc(tokens) {
                    Ok(sequence) => {
                        assert_eq!(sequence.tokens(), tokens);
                        live.push(sequence);
                    }
                    Err(e) => {
                        assert!(matches!(e, Error::OutOfPages { needed, free: f, total } if needed > f && f == free && total == pages));
                        assert_eq!(pool.free(), free);
                    }
                },
                Step::Grow(i, tokens) if !live.is_empty() => {
                    let at = i % live.len();
                    let (before, held) = (live[at].tokens(), live[at].pages().to_vec());
                    match pool.grow(&mut live[at], tokens) {
                        Ok(()) => {
                            assert_eq!(live[at].tokens(), before + tokens);
                            assert_eq!(live[at].pages()[..held.len()], held, "pages already held stay where they are");
                        }
                        Err(_) => {
                            assert_eq!(pool.free(), free);
                            assert_eq!((live[at].tokens(), live[at].pages()), (before, &held[..]));
                        }
                    }
                }
                Step::Share(i, prefix) if !live.is_empty() => {
                    let at = i % live.len();
                    match pool.share(&live[at], prefix) {
                        Ok(shared) => {
                            assert!(shared.tokens() <= prefix && prefix - shared.tokens() < pool.page_size());
                            assert_eq!(shared.pages(), &live[at].pages()[..shared.pages().len()]);
                            live.push(shared);
                        }
                        Err(_) => assert!(prefix > live[at].tokens()),
                    }
                    assert_eq!(pool.free(), free, "sharing takes no page");
                }
                Step::Release(i) if !live.is_empty() => {
                    let at = i % live.len();
                    pool.release(live.swap_remove(at));
                }
                _ => {}
            }
            check(&pool, &live);
        }
        for sequence in live {
            pool.release(sequence);
        }
        assert_eq!(pool.free(), pages);
    }
}

#[test]
fn a_pool_hands_out_its_last_page_and_no_more() {
    let mut pool = PagePool::new(3, 16).expect("a pool");
    let mut first = pool.alloc(32).expect("two pages");
    let second = pool.alloc(16).expect("the third");
    let refused = pool.grow(&mut first, 1);
    assert!(matches!(refused, Err(Error::OutOfPages { needed: 1, free: 0, total: 3 })), "{refused:?}");
    pool.release(second);
    pool.grow(&mut first, 1).expect("the released page");
    assert_eq!(first.tokens(), 33);
    assert!(matches!(pool.grow(&mut first, usize::MAX), Err(Error::Value { name: "tokens", .. })));
    pool.release(first);
}

#[test]
fn a_shared_prefix_outlives_its_first_owner() {
    let mut pool = PagePool::new(8, 64).expect("a pool");
    let first = pool.alloc(200).expect("four pages");
    let prompt = first.pages()[..3].to_vec();
    let mut second = pool.share(&first, 199).expect("three whole pages");
    assert_eq!((second.tokens(), second.pages()), (192, &prompt[..]));
    pool.release(first);
    assert_eq!(pool.free(), 5);
    pool.grow(&mut second, 100).expect("pages of its own");
    assert_eq!(second.pages()[..3], prompt);
    assert!(second.pages()[3..].iter().all(|p| !prompt.contains(p)));
    pool.release(second);
    assert_eq!(pool.free(), 8);
}

#[test]
fn unsupported_page_sizes_are_refused() {
    for size in [0, 1, 8, 17, 48, 512] {
        assert!(matches!(PagePool::new(4, size), Err(Error::Value { name: "page_size", .. })), "{size}");
    }
}

#[test]
fn tables_are_padded_to_whole_blocks() {
    let mut pool = PagePool::new(8, 32).expect("a pool");
    let (a, b) = (pool.alloc(33).expect("two pages"), pool.alloc(0).expect("no page"));
    let table = PageTable::new(&[&a, &b], 32);
    assert_eq!(table.stride, 4);
    assert_eq!(table.entries, [a.pages()[0], a.pages()[1], -1, -1, -1, -1, -1, -1]);
    assert_eq!(PageTable::new(&[], 32), PageTable { entries: vec![], stride: 1 });
    pool.release(a);
    pool.release(b);
}
