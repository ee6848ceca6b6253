//! The page that a run leaves behind: the summary's figures, and nothing of a catalog that a browser would take for markup.

use std::fs;

use serde_json::{Value, json};

use crate::support::{
    catalog::Catalog,
    fleet::{DEADLINE, Fleet, ended},
    process::shelfmill,
    simulator::Simulator,
};

const EVIL: &str = "</script><img src=x onerror=alert(1)><!--";

/// The figures in the page, which is otherwise as it always is.
#[track_caller]
fn figures(out: &std::path::Path) -> (Value, String) {
    let page = fs::read_to_string(out.join("analysis_report.html")).unwrap();
    let (before, rest) = page.split_once("id=\"snapshot\">").expect("a place for the figures");
    let (json, after) = rest.split_once("</script>").expect("its end");
    (serde_json::from_str(json).expect("JSON"), format!("{before}{after}"))
}

#[test]
fn a_report_has_the_summarys_figures_and_examples_as_text() {
    let mut catalog = Catalog::of(40);
    catalog.ids.push(EVIL.to_owned());
    let mut lines = fs::read_to_string(catalog.input()).unwrap();
    lines += &format!("{}\n", json!({"id": EVIL, "title": EVIL}));
    fs::write(catalog.input(), lines).unwrap();
    let simulator = Simulator::start(&["--latency", "40ms", "--forbid-products", EVIL]);
    let job = catalog.file(
        "job.toml",
        "[llm]\nprices = { prompt = 1.0, completion = 1.0 }\n[limits]\nmax_attempts = 1\nbudget = 9.5\n",
    );
    let run = |out: &str| {
        let out = catalog.out().with_file_name(out);
        let run = shelfmill().arg("run").arg(catalog.input()).arg("--out").arg(&out).arg("--job").arg(&job);
        (run.args(["--base-url", simulator.url(), "--concurrency", "1"]), out)
    };
    let (without, out) = run("without");
    without.run(DEADLINE).expect_code(3);
    assert!(!out.join("analysis_report.html").exists(), "nobody asked for it");
    let (with, out) = run("with");
    let told = with.arg("--report").run(DEADLINE).expect_code(3);
    assert!(told.stderr.contains("analysis_report.html"), "{told}");

    let (figures, page) = figures(&out);
    let summary: Value =
        serde_json::from_slice(&fs::read(out.join("analysis_summary.json")).unwrap()).unwrap();
    for name in ["cost_usd", "latency_ms", "calls", "tokens", "run"] {
        assert_eq!(figures[name], summary[name], "{name}");
    }
    assert_eq!(figures["products"], json!({"total": 41, "completed": 40, "failed": 1, "rejected": 0}));
    assert_eq!((&figures["state"], &figures["budget_usd"]), (&json!("complete"), &json!(9.5)));
    assert_eq!(figures["failures"][0]["class"], "unauthorized");
    assert_eq!(figures["failures"][0]["examples"][0]["id"], EVIL);
    assert!(!page.contains("alert(1)"), "what is of the catalog is in the figures, and nowhere else");
    assert!(figures["rate"]["series"].as_array().is_some_and(|series| !series.is_empty()), "{figures}");
}

#[test]
fn a_fleets_aggregator_leaves_a_report_too() {
    let fleet = Fleet::new("report", 60, &[]);
    let workers = fleet.workers(1);
    ended(fleet.producer().run(DEADLINE));
    ended(fleet.aggregator().arg("--report").run(DEADLINE));
    let (figures, _) = figures(&fleet.catalog.out());
    assert_eq!(figures["products"]["completed"], 60);
    drop(workers);
}
