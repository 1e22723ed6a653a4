use serde_json::json;
use time::macros::datetime;

use super::*;

const BEGIN: OffsetDateTime = datetime!(2026-02-01 12:00:00 UTC);

fn at(millis: u64) -> OffsetDateTime {
    BEGIN + Duration::from_millis(millis)
}

fn order() -> ShownOrder {
    ShownOrder {
        payment_order_id: Uuid::from_u128(1),
        r#try: 1,
        psp: "STRIPE".into(),
        state: "SUCCESSFUL".into(),
        psp_reference: Some("pi_1".into()),
        error_code: None,
        error_message: None,
        review_reason: None,
        trace_id: "a".repeat(32),
        expires_at: at(3_600_000),
        created_at: at(0),
    }
}

fn event(id: u128, created: u64, published: Option<u64>) -> Appended {
    Appended {
        event_id: Uuid::from_u128(id),
        event_type: "E".into(),
        created_at: at(created),
        published_at: published.map(at),
        leader: Some("vm:7".into()),
        ranges: Some(json!({"requests": {"0": [3, 5], "2": [9, 9]}})),
        parked: false,
        parked_reason: None,
    }
}

fn created() -> Transition {
    Transition {
        event_id: None,
        from_state: None,
        to_state: "CREATED".into(),
        decision: "APPLIED".into(),
        psp_status: None,
        psp_reference: None,
        error_code: None,
        review_reason: None,
        event_time: None,
        topic: None,
        partition: None,
        record_offset: None,
        operator: None,
        note: None,
        command_id: None,
        decided_at: at(0),
    }
}

fn decided_at(event: u128, obtained: u64, decided: u64) -> Transition {
    Transition {
        event_id: Some(Uuid::from_u128(event)),
        from_state: Some("CREATED".into()),
        to_state: "SUCCESSFUL".into(),
        psp_status: Some("SUCCESSFUL".into()),
        psp_reference: Some("pi_1".into()),
        event_time: Some(at(obtained)),
        topic: Some("results".into()),
        partition: Some(4),
        record_offset: Some(17),
        decided_at: at(decided),
        ..created()
    }
}

fn execution() -> Execution {
    Execution {
        inbox: Some(Inbox {
            request_event_id: Some(Uuid::from_u128(10)),
            state: "SETTLED".into(),
            received_at: at(20),
            due_at: at(20),
            parked: None,
        }),
        attempts: vec![Attempt {
            operation: "CREATE".into(),
            r#try: 1,
            started_at: at(25),
            finished_at: Some(at(40)),
            verdict: Some("SUCCEEDED".into()),
            http_status: Some(200),
            psp_reference: Some("pi_1".into()),
            psp_request_id: None,
            error_code: None,
            error_message: None,
        }],
        results: vec![PspResult {
            psp_status: "SUCCESSFUL".into(),
            psp_reference: Some("pi_1".into()),
            error_code: None,
            error_message: None,
            source: "REPLY".into(),
            event_id: Uuid::from_u128(11),
            event_time: at(40),
            recorded_at: at(42),
        }],
        webhooks: Vec::new(),
    }
}

fn titles(steps: &[Step]) -> Vec<(&str, u128)> {
    steps.iter().map(|step| (step.what.as_str(), step.after.unwrap_or_default().as_millis())).collect()
}

fn detail<'a>(step: &'a Step, label: &str) -> Option<&'a str> {
    step.details.iter().find(|fact| fact.label == label).map(|fact| fact.text.as_str())
}

#[test]
fn every_step_from_the_request_to_the_state_is_there_with_its_lag() {
    let (order, transitions) = (order(), [created(), decided_at(11, 40, 60)]);
    let (request, results, execution) = (event(10, 1, Some(12)), [event(11, 43, Some(55))], execution());
    let facts = Facts {
        order: &order,
        transitions: &transitions,
        set_aside: &[],
        request: Some(&request),
        execution: Some(&execution),
        results: &results,
    };
    let steps = steps(&facts);
    let expected = [
        ("Request accepted", 0),
        ("Request written to the outbox", 1),
        ("Request saved as published", 11),
        ("Request taken in", 8),
        ("PSP called: CREATE, try 1", 5),
        ("PSP answered: CREATE, try 1: SUCCEEDED", 15),
        ("Result recorded: SUCCESSFUL", 2),
        ("Result written to the outbox", 1),
        ("Result saved as published", 12),
        ("APPLIED: CREATED → SUCCESSFUL", 5),
    ];
    assert_eq!(titles(&steps), expected);
    assert_eq!(steps[0].after, None);
    let several = "requests, partition 0, offsets 3 to 5; requests, partition 2, offset 9";
    assert_eq!(detail(&steps[2], "topic position, one of"), Some(several));
    let exactly = Some("results, partition 4, offset 17");
    assert_eq!(
        (detail(&steps[8], "topic position"), detail(&steps[9], "topic position")),
        (exactly, exactly)
    );
    assert_eq!(detail(&steps[9], "since the PSP's answer"), Some("20.0 ms"));
    assert_eq!(waits(&facts), Vec::<String>::new());
}

#[test]
fn without_the_executor_the_event_says_when_the_answer_was_obtained() {
    let (order, transitions) = (order(), [created(), decided_at(11, 40, 60)]);
    let facts = Facts {
        order: &order,
        transitions: &transitions,
        set_aside: &[],
        request: None,
        execution: None,
        results: &[],
    };
    let expected = [
        ("Request accepted", 0),
        ("PSP's answer obtained: SUCCESSFUL", 40),
        ("APPLIED: CREATED → SUCCESSFUL", 20),
    ];
    assert_eq!(titles(&steps(&facts)), expected);
    assert_eq!(waits(&facts), Vec::<String>::new());
}

#[test]
fn clocks_that_differ_give_no_negative_lag_and_ties_keep_the_order_of_the_path() {
    let (order, transitions) = (order(), [created(), decided_at(11, 40, 30)]);
    let (request, execution) = (event(10, 0, Some(0)), execution());
    let facts = Facts {
        order: &order,
        transitions: &transitions,
        set_aside: &[],
        request: Some(&request),
        execution: Some(&execution),
        results: &[],
    };
    let steps = steps(&facts);
    let first: Vec<Kind> = steps.iter().take(3).map(|step| step.kind).collect();
    assert_eq!(first, [Kind::Accepted, Kind::RequestWritten, Kind::RequestPublished]);
    let decided = steps.iter().find(|step| step.kind == Kind::Decided).unwrap();
    assert_eq!(detail(decided, "since the PSP's answer"), Some("0.0 ms"));
}

#[test]
fn a_change_by_hand_a_redrive_and_a_record_set_aside_are_told() {
    let order = order();
    let by_hand = Transition {
        from_state: Some("NEEDS_REVIEW".into()),
        to_state: "FAILED".into(),
        decision: "BY_HAND".into(),
        operator: Some("ada".into()),
        note: Some("ticket 17".into()),
        decided_at: at(900),
        ..created()
    };
    let redriven =
        Transition { operator: Some("eve".into()), command_id: Some(5), ..decided_at(12, 100, 800) };
    let transitions = [created(), redriven, by_hand];
    let record = SetAsideRecord {
        id: 3,
        topic: "results".into(),
        partition: 1,
        record_offset: 2,
        reason_code: "REFUSED".into(),
        reason: "the database refused it".into(),
        received_at: at(150),
        settled_at: Some(at(800)),
        outcome: Some("APPLIED".into()),
    };
    let set_aside = [record];
    let facts = Facts {
        order: &order,
        transitions: &transitions,
        set_aside: &set_aside,
        request: None,
        execution: None,
        results: &[],
    };
    let told = steps(&facts);
    let expected = [
        "Request accepted",
        "PSP's answer obtained: SUCCESSFUL",
        "Record 3 set aside: REFUSED",
        "Record 3 left the quarantine: APPLIED",
        "APPLIED: CREATED → SUCCESSFUL",
        "Changed by hand: NEEDS_REVIEW → FAILED",
    ];
    assert_eq!(told.iter().map(|step| step.what.as_str()).collect::<Vec<_>>(), expected);
    assert_eq!(
        (detail(&told[4], "operator"), detail(&told[4], "redriven by command")),
        (Some("eve"), Some("5"))
    );
    assert_eq!((told[5].kind.class(), detail(&told[5], "reason given")), ("person", Some("ticket 17")));
    let open = [SetAsideRecord { settled_at: None, outcome: None, ..set_aside[0].clone() }];
    let waiting = waits(&Facts { set_aside: &open, ..facts });
    assert_eq!(waiting, ["Record 3 is in quarantine (REFUSED): the database refused it"]);
}

#[test]
fn what_has_not_happened_yet_is_named() {
    let (order, transitions) = (order(), [created()]);
    let waiting = |request: Option<&Appended>, execution: Option<&Execution>, results: &[Appended]| {
        waits(&Facts {
            order: &order,
            transitions: &transitions,
            set_aside: &[],
            request,
            execution,
            results,
        })
        .join(" ")
    };
    let unpublished = event(10, 1, None);
    assert!(waiting(Some(&unpublished), None, &[]).contains("not saved as published yet"));
    let parked = Appended { parked: true, parked_reason: Some("no such type".into()), ..unpublished.clone() };
    assert!(waiting(Some(&parked), None, &[]).contains("cannot be published: no such type"));
    let held = Appended { parked: true, ..unpublished };
    assert!(waiting(Some(&held), None, &[]).contains("held in its outbox"));
    let published = event(10, 1, Some(2));
    assert_eq!(waiting(Some(&published), None, &[]), "", "nobody could be asked");
    let nothing = Execution::default();
    assert!(waiting(Some(&published), Some(&nothing), &[]).contains("has not taken it in"));
    for (state, words) in [
        ("QUEUED", "queued"),
        ("IN_FLIGHT", "at work"),
        ("RESOLVING", "asked again at"),
        ("REVIEW", "a person must look"),
    ] {
        let inbox = execution().inbox.map(|inbox| Inbox { state: state.into(), ..inbox });
        let execution = Execution { inbox, ..Execution::default() };
        assert!(waiting(Some(&published), Some(&execution), &[]).contains(words), "{state}");
    }
    let result = [event(11, 43, Some(55))];
    assert!(waiting(Some(&published), Some(&execution()), &result).contains("has not applied it"));
}
