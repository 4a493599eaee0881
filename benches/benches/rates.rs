//! A table of what single instructions cost in SM clocks, alone and beside the tensor core (docs/perf-log.md), and its
//! record: `--records FILE`, or the file that `STEM_RECORDS` names, gets a line per measurement.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;
use stem_attn::driver::available;
use stem_attn_benches::RECORDS;
use stem_attn_benches::rates::{OPS, Op, Rate, Rates, TRIPS};

/// Warps a scheduler that stream the instruction, and warpgroups of products beside them.
const SETTINGS: [(u32, u32); 5] = [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2)];

fn main() -> ExitCode {
    let records = match records() {
        Ok(records) => records,
        Err(message) => {
            eprintln!("{message}\nusage: rates [--records FILE]");
            return ExitCode::from(2);
        }
    };
    if let Err(reason) = available() {
        println!("nothing to measure: {reason}");
        return ExitCode::SUCCESS;
    }
    match measure_all(records) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// The file for records.
fn records() -> Result<Option<OsString>, String> {
    let mut file = std::env::var_os(RECORDS);
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--records") => file = Some(args.next().ok_or("--records wants a file")?),
            Some("--bench") => {} // cargo's own
            _ => return Err(format!("unknown argument {}", arg.to_string_lossy())),
        }
    }
    Ok(file)
}

fn measure_all(records: Option<OsString>) -> Result<(), Box<dyn std::error::Error>> {
    // Opened first: a file that cannot be written should not cost a measurement.
    let mut file = records.map(|path| std::fs::OpenOptions::new().create(true).append(true).open(path)).transpose()?;
    let rates = Rates::open(0)?;
    let mut measure = |op: Option<&Op>, (op_warps, warpgroups)| -> Result<Rate, Box<dyn std::error::Error>> {
        let rate = rates.measure(op, op_warps, warpgroups, TRIPS)?;
        if let Some(file) = &mut file {
            file.write_all(rate.to_line().as_bytes())?;
        }
        Ok(rate)
    };
    let alone = [measure(None, (0, 1))?, measure(None, (0, 2))?];
    println!("{}, driver {}", alone[0].gpu, alone[0].driver.as_deref().unwrap_or("unknown"));
    println!("SM clocks per instruction and warp; w: warps a scheduler that stream it, mma: warpgroups of wgmma m64n128k32 e4m3");
    println!("beside them, in brackets the clocks per product, of all warpgroups together.");
    println!("wgmma alone: 1 mma ({}), 2 mma ({})\n", number(alone[0].clocks_per_wgmma), number(alone[1].clocks_per_wgmma));
    print!("{:<28}", "");
    for (op_warps, warpgroups) in SETTINGS {
        let title = if warpgroups == 0 { format!("{op_warps}w alone") } else { format!("{op_warps}w, {warpgroups} mma") };
        print!("{title:>16}");
    }
    println!();
    for op in &OPS {
        print!("{:<28}", op.ptx);
        for setting in SETTINGS {
            let rate = measure(Some(op), setting)?;
            let wgmma = rate.clocks_per_wgmma.map(|c| format!(" ({c:.1})")).unwrap_or_default();
            print!("{:>16}", number(rate.clocks_per_instruction) + &wgmma);
        }
        println!();
    }
    Ok(())
}

fn number(clocks: Option<f64>) -> String {
    clocks.map_or("-".into(), |c| format!("{c:.2}"))
}
