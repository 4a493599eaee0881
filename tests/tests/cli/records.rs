//! Reports, pictures and benchmarks.

use super::{Case, bytes, fp8_file, run, stem, succeed};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

#[test]
fn report_and_picture() {
    let case = Case::new(&bytes(&fp8_file(300, 700)));
    let (report, mask) = (case.dir.path().join("r.json"), case.dir.path().join("m.svg"));
    let more = ["--repeat", "2", "--page-size", "32", "--report", report.to_str().unwrap(), "--mask", mask.to_str().unwrap()];
    succeed(&case.prefill(&more));
    succeed(&case.prefill(&more));
    let text = std::fs::read_to_string(&report).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let benches: Vec<_> = lines.iter().map(|line| line["bench"].as_str().unwrap()).collect();
    let stages = ["summarize_kv", "select", "attend", "prefill"];
    assert_eq!(benches, [stages, stages].concat(), "two runs, one record per stage each");
    for line in &lines {
        for field in [
            "bench",
            "gpu",
            "driver",
            "sm_clock_mhz",
            "power_w",
            "hq",
            "hkv",
            "d",
            "seq",
            "history",
            "chunk",
            "page",
            "skip",
            "softmax",
            "preset",
            "ms",
            "p10",
            "p90",
            "tflops_selected",
            "tflops_dense_equiv",
            "cycles_per_tile",
            "peer",
            "command",
            "commit",
            "date",
        ] {
            assert!(line.get(field).is_some(), "{field} in {line}");
        }
        assert_eq!((&line["hq"], &line["hkv"], &line["d"]), (&4.into(), &2.into(), &128.into()));
        assert_eq!((&line["seq"], &line["history"], &line["page"]), (&300.into(), &400.into(), &32.into()));
        let number = |field: &str| line[field].as_f64().unwrap();
        assert!(number("ms") > 0.0 && number("p10") <= number("ms") && number("ms") <= number("p90"), "{line}");
        let skip = (line["bench"] != "summarize_kv").then_some(0.0);
        assert_eq!(line["skip"].as_f64(), skip, "six blocks are below the dense limit");
        let command = line["command"].as_str().unwrap();
        assert!(command.starts_with("stem prefill"));
        assert!(command.contains("--report r.json") && command.contains("--mask m.svg"), "{command}");
        assert!(!command.contains(case.dir.path().to_str().unwrap()), "folders of a machine in a record: {command}");
    }
    let picture = std::fs::read_to_string(mask).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    for head in 0..4 {
        assert!(picture.contains(&format!("head {head}:")));
    }
}

#[test]
fn bench_checks_measures_and_records() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("r.jsonl");
    let shape = ["--hq", "4", "--hkv", "2", "--page", "32", "--repeat", "2", "--backend", "cpu", "--records", records.to_str().unwrap()];
    for (stage, more) in [
        ("attend", &["--seq", "300,512", "--history", "100", "--skip", "0,0.5", "--dense"][..]),
        ("select", &["--seq", "300"]),
        ("summarize_kv", &["--seq", "129"]),
        ("append_kv", &["--seq", "129", "--history", "77"]),
        ("prefill", &["--seq", "300", "--preset", "paper"]),
        ("select", &["--seq", "300", "--selector", "probe"]),
        ("prefill", &["--seq", "300", "--selector", "probe-fine"]),
        ("probe_means", &["--seq", "300", "--selector", "probe"]),
    ] {
        let text = succeed(&run(&[&["bench", "--bench", stage][..], more, &shape].concat()));
        assert!(text.contains("checked") && text.contains("cpu"), "{text}");
    }
    let text = std::fs::read_to_string(&records).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<_> = lines.iter().map(|l| (l["bench"].as_str().unwrap(), l["preset"].as_str(), l["skip"].as_f64())).collect();
    assert_eq!(
        found[..3],
        [("attend", Some("dense"), Some(0.0)), ("attend", Some("random"), Some(0.0)), ("attend", Some("random"), found[2].2)]
    );
    assert!((found[2].2.unwrap() - 0.5).abs() < 0.1, "{found:?}");
    assert_eq!(
        found[6..],
        [
            ("select", Some("hpc"), Some(0.0)),
            ("summarize_kv", None, None),
            ("append_kv", None, None),
            ("prefill", Some("paper"), Some(0.0)),
            ("select", Some("hpc"), Some(0.0)),
            ("prefill", Some("hpc"), Some(0.0)),
            ("probe_means", None, None)
        ]
    );
    let selectors: Vec<_> = lines[6..].iter().map(|line| line["selector"].as_str()).collect();
    assert_eq!(selectors, [Some("stem"), Some("stem"), None, Some("stem"), Some("probe"), Some("probe-fine"), Some("probe")]);
    for line in &lines {
        let attends = ["attend", "prefill"].contains(&line["bench"].as_str().unwrap());
        assert_eq!(line["error"].as_f64().is_some_and(|e| e > 0.0 && e < 0.03), attends, "{line}");
        assert!(line["bytes"].as_u64().is_some_and(|n| n > 0) && line["run"].is_string() && line["rounds"] == 1, "{line}");
        let of_selector = ["select", "prefill", "summarize_kv", "probe_means"].contains(&line["bench"].as_str().unwrap());
        assert_eq!(line["selector"].is_string(), of_selector, "{line}");
    }
    for bad in [
        &["--seq", "0"][..],
        &["--seq", "99999999999"],
        &["--seq", "128", "--skip", "1"],
        &["--seq", "128", "--hq", "5", "--hkv", "2"],
        &["--seq", "128", "--page", "8"],
        &["--seq", "128", "--dump", "no/such/folder"],
        &["--seq", "128", "--bench", "probe_means"],
    ] {
        let output = run(&[&["bench", "--bench", "attend", "--backend", "cpu"][..], bad].concat());
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
        assert!(output.stdout.is_empty() && !String::from_utf8_lossy(&output.stderr).contains("panicked"));
    }
}

/// Everything before attention in one interval, and a chunk beside the full pass that it is compared with.
#[test]
fn bench_of_selection_and_of_a_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("r.jsonl");
    let shape = ["--hq", "4", "--hkv", "2", "--repeat", "2", "--backend", "cpu", "--records", records.to_str().unwrap()];
    let of_stage = |stages: &str, more: &[&str]| succeed(&run(&[&["bench", "--bench", stages][..], more, &shape].concat()));
    of_stage("selection", &["--seq", "300"]);
    of_stage("selection", &["--seq", "300", "--history", "200", "--selector", "probe"]);
    let text = of_stage("summarize_chunk", &["--seq", "700,900", "--chunk", "130", "--rounds", "2"]);
    assert_eq!(text.lines().filter(|line| line.contains("of the full pass")).count(), 2, "{text}");
    assert!(text.contains("summarize_chunk of 130 tokens, 770 before them: "), "{text}");
    // A full pass that was asked for is not measured twice, and a chunk may be all there is.
    of_stage("summarize_chunk,summarize_kv", &["--seq", "300", "--chunk", "300", "--selector", "probe"]);
    let text = std::fs::read_to_string(&records).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let found: Vec<_> = lines
        .iter()
        .map(|l| {
            let number = |field: &str| l[field].as_u64();
            (l["bench"].as_str().unwrap(), number("seq"), number("history"), number("chunk"), l["preset"].as_str())
        })
        .collect();
    let full = |seq| ("summarize_kv", Some(seq), Some(0), None, None);
    let part = |seq, chunk| ("summarize_chunk", Some(seq), Some(0), Some(chunk), None);
    let wanted = [
        ("selection", Some(300), Some(0), None, Some("hpc")),
        ("selection", Some(300), Some(200), None, Some("hpc")),
        full(700),
        part(700, 130),
        full(900),
        part(900, 130),
        part(300, 300),
        full(300),
    ];
    assert_eq!(found, wanted);
    let bytes: Vec<_> = lines.iter().map(|l| l["bytes"].as_u64().unwrap()).collect();
    assert!(bytes[3] < bytes[2] / 2 && bytes[6] == bytes[7], "{bytes:?}");
    let selectors = ["stem", "probe", "stem", "stem", "stem", "stem", "probe", "probe"];
    for (line, selector) in lines.iter().zip(selectors) {
        assert_eq!(line["selector"].as_str(), Some(selector), "{line}");
        assert_eq!(line["skip"].is_number(), line["bench"] == "selection", "{line}");
        assert!(line["ms"].as_f64().is_some_and(|ms| ms > 0.0) && line.get("chunk").is_some(), "{line}");
    }
}

#[test]
fn chunks_and_options_that_cannot_be_are_refused() {
    for (bad, words) in [
        (&["summarize_chunk", "--seq", "300"][..], &["chunk:", "1 to 300", "8192"][..]),
        (&["summarize_chunk", "--seq", "900,300", "--chunk", "301"], &["chunk:", "1 to 300", "301"]),
        (&["summarize_chunk", "--seq", "300", "--chunk", "0"], &["chunk:", "1 to 300"]),
        (&["summarize_chunk", "--seq", "300", "--chunk", "18446744073709551615"], &["chunk:", "1 to 300"]),
        (&["summarize_chunk", "--seq", "300", "--chunk", "100", "--history", "5"], &["history:", "summarize_chunk"]),
        (&["summarize_kv,selection", "--seq", "300", "--chunk", "100"], &["chunk:", "summarize_chunk"]),
        (&["selection", "--seq", "300", "--skip", "0.5"], &["skip:", "attend"]),
        (&["selection", "--seq", "300", "--pause", "20"], &["pause:", "--l2 flushed"]),
    ] {
        let output = run(&[&["bench", "--backend", "cpu", "--bench"][..], bad].concat());
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{bad:?}: {text}");
        assert!(output.stdout.is_empty() && text.starts_with("error: "), "{bad:?}: {text}");
        assert!(words.iter().all(|word| text.contains(word)) && !text.contains("panicked"), "{bad:?}: {text}");
    }
    for usage in ["-1", "x", "18446744073709551616"] {
        let arguments = ["bench", "--bench", "summarize_chunk", "--seq", "300", "--chunk", usage];
        assert_eq!(run(&arguments).status.code(), Some(2), "{usage}");
    }
}

/// Another program takes turns with `stem bench`: every line is launched when its turn comes and not before, the tensors are
/// in a file meanwhile, and the records carry the command and the run of the other program.
#[test]
fn bench_takes_turns_with_another_program() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("r.jsonl");
    let mut child = Command::new(stem())
        .args(["bench", "--bench", "attend,host_run", "--seq", "256,384", "--hq", "2", "--hkv", "1", "--dense", "--skip", "0.5"])
        .args(["--rounds", "2", "--repeat", "3", "--backend", "cpu", "--paced", "--run", "A and B"])
        .args(["--records".as_ref(), records.as_os_str(), "--dump".as_ref(), dir.path().as_os_str()])
        .env("STEM_COMMAND", "python3 peers.py")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut turns, mut answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()).lines());
    for seq in [256, 384] {
        assert_eq!(answers.next().unwrap().unwrap(), "ready");
        succeed(&run(&["prefill", "--dense", "--input", dir.path().join(format!("{seq}.safetensors")).to_str().unwrap()]));
        assert_eq!(std::fs::read_to_string(&records).unwrap_or_default().lines().count(), if seq == 256 { 0 } else { 3 });
        for _ in 0..2 * 3 {
            turns.write_all(b"go\n").unwrap();
            assert_eq!(answers.next().unwrap().unwrap(), "done");
        }
    }
    let table: Vec<String> = answers.map_while(Result::ok).collect();
    assert!(child.wait().unwrap().success() && table.iter().any(|line| line.contains("host_run")), "{table:?}");
    let text = std::fs::read_to_string(&records).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.iter().map(|l| l["bench"].as_str().unwrap()).collect::<Vec<_>>(), ["attend", "attend", "host_run"].repeat(2));
    for line in lines {
        assert_eq!((&line["repeat"], &line["rounds"]), (&6.into(), &2.into()));
        assert_eq!((line["command"].as_str(), line["run"].as_str()), (Some("python3 peers.py"), Some("A and B")));
    }
}

#[test]
fn a_partner_that_ends_is_an_error() {
    let shape = ["--seq", "128", "--hq", "1", "--hkv", "1", "--backend", "cpu", "--paced"];
    let output = Command::new(stem()).args(["bench", "--bench", "attend"]).args(shape).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "ready");
}
