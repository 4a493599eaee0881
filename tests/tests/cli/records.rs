//! Reports, pictures and benchmarks.

use super::{Case, bytes, fp8_file, run, succeed};

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
            ("prefill", Some("paper"), Some(0.0))
        ]
    );
    for bad in [
        &["--seq", "0"][..],
        &["--seq", "99999999999"],
        &["--seq", "128", "--skip", "1"],
        &["--seq", "128", "--hq", "5", "--hkv", "2"],
        &["--seq", "128", "--page", "8"],
    ] {
        let output = run(&[&["bench", "--bench", "attend", "--backend", "cpu"][..], bad].concat());
        assert_eq!(output.status.code(), Some(2), "{bad:?}");
        assert!(output.stdout.is_empty() && !String::from_utf8_lossy(&output.stderr).contains("panicked"));
    }
}
