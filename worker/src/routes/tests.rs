use std::{collections::BTreeMap, time::Duration};

use shelfmill_pipeline::{failure::FailureClass, job::EndpointSpec};

use super::*;

fn routes(endpoints: Vec<EndpointSpec>) -> anyhow::Result<Routes> {
    let config = WorkerConfig {
        name: "one".to_owned(),
        concurrency: None,
        base_url: None,
        find_key: |variable| variable.starts_with("SET").then(|| SecretString::from("sk-canary-0123456789")),
        recycle_client_every: 0,
        until_done: false,
        until_halted: false,
    };
    let mut job = Job::default();
    job.llm.endpoints = endpoints;
    Routes::new(&config, &job, 8, Whose::OfAll)
}

fn spec(name: &str, weight: u32, keys: &[&str]) -> EndpointSpec {
    let keys = keys.iter().map(|key| (*key).to_owned()).collect();
    EndpointSpec {
        weight,
        api_keys: Some(keys),
        ..EndpointSpec::at(name.to_owned(), "http://127.0.0.1:9/v1".to_owned())
    }
}

fn chosen(routes: &Routes, times: usize) -> BTreeMap<String, usize> {
    let mut by = BTreeMap::new();
    for _ in 0..times {
        let Choice::Go(route, _) = routes.choose(|_| true, None) else { panic!("none") };
        *by.entry(route.server.at().name.clone()).or_default() += 1;
    }
    by
}

fn refuse(route: &Route) -> Option<Halt> {
    route.refused(&CallFailure::new(FailureClass::Unauthorized, "401".to_owned()), IdHash::of("A"))
}

#[tokio::test]
async fn turns_go_by_weight_however_many_keys_there_are() {
    let routes = routes(vec![spec("a", 1, &[]), spec("b", 3, &["SET_ONE", "SET_TWO"])]).unwrap();
    let by = chosen(&routes, 400);
    assert_eq!((by["a"], by["b"]), (100, 300));
    assert_eq!((routes.count(), routes.servers().count()), (3, 2));
}

#[tokio::test(start_paused = true)]
async fn what_is_down_is_left_out_until_a_call_has_seen_it_again() {
    let routes = routes(vec![spec("a", 1, &[]), spec("b", 1, &[])]).unwrap();
    let down = &routes.all[1];
    down.breaker.answered();
    (0..5).for_each(|_| down.breaker.failed("down"));
    assert_eq!(chosen(&routes, 20)["a"], 20);
    assert!(!routes.has_other_than(0));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(chosen(&routes, 20)["b"], 1, "one call sees whether it is there");
    down.breaker.answered();
    assert_eq!(chosen(&routes, 20)["b"], 10);
    // One that has just failed is not tried again at once, if there is another.
    for _ in 0..10 {
        let Choice::Go(route, _) = routes.choose(|_| true, Some(0)) else { panic!("none") };
        assert_eq!(route.index, 1);
    }
}

#[tokio::test]
async fn what_is_closed_for_good_is_not_taken_and_when_all_are_there_is_none() {
    let routes = routes(vec![spec("a", 1, &["SET"]), spec("b", 1, &[])]).unwrap();
    assert!(refuse(&routes.all[0]).is_some() && !routes.are_closed());
    assert_eq!(chosen(&routes, 10)["b"], 10);
    assert!(matches!(routes.choose(|route| route.index == 0, None), Choice::NoneSuits));
    assert!(refuse(&routes.all[1]).is_some() && routes.are_closed());
    assert!(matches!(routes.choose(|_| true, None), Choice::Closed(_)));
}

#[tokio::test]
async fn a_key_that_is_named_must_be_there() {
    let missing = routes(vec![spec("a", 1, &["SET", "MISSING"])]).map(|_| ()).unwrap_err().to_string();
    assert!(missing.contains("MISSING") && !missing.contains("canary"), "{missing}");
    assert!(
        routes(Vec::new()).is_err_and(|error| error.downcast_ref::<NoKey>().is_some()),
        "OpenAI, without a key"
    );
}
