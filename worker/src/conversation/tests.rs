use serde_json::json;

use super::*;

fn task(product: &Value) -> Task {
    Task::new("7".to_owned(), 1, serde_json::value::to_raw_value(product).unwrap())
}

fn job() -> Job {
    let mut job = Job::default();
    job.prompt.system = Some("Be brief.".to_owned());
    job.prompt.user = "{{ product | tojson }}".to_owned();
    job.llm.max_output_tokens = 100;
    job
}

fn begin(job: &Job, product: &Value) -> Conversation {
    Conversation::begin(job, &Prompt::compile(&job.prompt).unwrap(), &task(product)).unwrap()
}

fn failure(class: FailureClass, raw: &str) -> CallFailure {
    CallFailure::new(class, "at /tags: null is not an array.".to_owned()).with_raw(raw)
}

#[test]
fn a_truncated_answer_is_asked_for_once_more_with_twice_the_ceiling() {
    let mut conversation = begin(&job(), &json!({"a": 1}));
    let truncated = failure(FailureClass::Truncated, "{\"a\":");
    assert!(conversation.goes_on_after(&truncated, 150));
    assert_eq!(conversation.ceiling, 150, "twice, but not above the limit");
    assert_eq!(
        conversation.messages(Structured::JsonSchema, &json!({})).len(),
        2,
        "nothing of it is shown again"
    );
    assert!(!conversation.goes_on_after(&truncated, 150));
    assert!(!begin(&job(), &json!({})).goes_on_after(&truncated, 100), "there is no room to double");
}

#[test]
fn a_violation_is_shown_to_the_model_as_often_as_the_job_says() {
    let job = job();
    let mut conversation = begin(&job, &json!({"a": 1}));
    let violation = failure(FailureClass::SchemaViolation, "{\"tags\":null}");
    assert!(conversation.goes_on_after(&violation, 200));
    let messages = conversation.messages(Structured::JsonSchema, &json!({}));
    assert_eq!(
        messages.iter().map(|message| message.role).collect::<Vec<_>>(),
        ["system", "user", "assistant", "user"]
    );
    assert_eq!(&*messages[2].content, "{\"tags\":null}");
    assert!(
        messages[3].content.contains("at /tags: null is not an array. Answer again"),
        "{}",
        messages[3].content
    );
    assert!(!conversation.goes_on_after(&violation, 200), "once by default");
    conversation.ask_anew(&job);
    assert_eq!(conversation.messages(Structured::JsonSchema, &json!({})).len(), 2);
    assert!(conversation.goes_on_after(&violation, 200));
    for class in [FailureClass::Timeout, FailureClass::ContentFiltered, FailureClass::ServerError] {
        assert!(!begin(&job, &json!({})).goes_on_after(&failure(class, "x"), 200));
    }
    let nothing = CallFailure::new(FailureClass::Malformed, "the answer is empty".to_owned());
    assert!(!begin(&job, &json!({})).goes_on_after(&nothing, 200), "there is nothing to show");
}

#[test]
fn images_stay_with_the_products_own_question() {
    let mut job = job();
    job.llm.on_overflow = OnOverflow::Truncate;
    let product = json!({"a": "x".repeat(8_000)});
    let mut conversation = begin(&job, &product);
    let shown = |conversation: &Conversation| {
        let messages = conversation.messages(Structured::None, &json!({}));
        messages.iter().map(|message| message.images.len()).collect::<Vec<_>>()
    };
    assert_eq!(shown(&conversation), [0, 0]);
    let data_url = format!("data:image/png;base64,{}", "A".repeat(4_000_000));
    conversation.images.push(Arc::new(Image { data_url, size: Some((512, 512)) }));
    assert_eq!(shown(&conversation), [0, 1]);
    assert!(conversation.goes_on_after(&failure(FailureClass::Malformed, "x"), 200));
    assert_eq!(shown(&conversation), [0, 1, 0, 0], "and are not shown again");
    conversation.ask_anew(&job);
    let (prompt, estimator) = (Prompt::compile(&job.prompt).unwrap(), Estimator::new("m", "localhost", None));
    let window = (Some(1_000), &estimator);
    let fitted = conversation.fit(&job, &prompt, &task(&product), window, Structured::JsonSchema).unwrap();
    assert!((255..=900).contains(&fitted.tokens), "its bytes are no tokens: {fitted:?}");
    assert!(conversation.shortened.is_some());
    assert_eq!(shown(&conversation), [0, 1], "a shortened prompt keeps them");
    let messages = conversation.messages(Structured::JsonSchema, &json!({}));
    let request = serde_json::to_vec(&messages).unwrap();
    let most = estimator.most(&messages, request.len());
    assert!((16_384..20_000).contains(&most), "{most}");
    job.llm.on_overflow = OnOverflow::Fail;
    let window = (Some(300), &estimator);
    let told = begin_with_image(&job, &json!({"a": 1})).fit(
        &job,
        &prompt,
        &task(&json!({"a": 1})),
        window,
        Structured::JsonSchema,
    );
    assert_eq!(told.unwrap_err().class, FailureClass::ContextTooLong, "an image takes room, too");
}

fn begin_with_image(job: &Job, product: &Value) -> Conversation {
    let mut conversation = begin(job, product);
    conversation.images.push(Arc::new(Image { data_url: "data:".to_owned(), size: Some((512, 512)) }));
    conversation
}

#[test]
fn where_the_server_takes_no_schema_the_prompt_has_it() {
    let conversation = begin(&job(), &json!({"a": 1}));
    let schema = json!({"type": "object"});
    assert_eq!(&*conversation.messages(Structured::JsonSchema, &schema)[0].content, "Be brief.");
    for structured in [Structured::JsonObject, Structured::None] {
        let messages = conversation.messages(structured, &schema);
        assert_eq!(messages.len(), 2);
        assert!(messages[0].content.starts_with("Be brief."), "{}", messages[0].content);
        assert!(
            messages[0].content.ends_with("JSON schema:\n{\"type\":\"object\"}"),
            "{}",
            messages[0].content
        );
    }
}

#[test]
fn a_prompt_beyond_the_window_is_told_or_its_longest_text_is_cut() {
    let mut job = job();
    let product = json!({"title": "Mug", "variants": [{"text": "x".repeat(8_000)}], "size": 7});
    let task = task(&product);
    let prompt = Prompt::compile(&job.prompt).unwrap();
    let estimator = Estimator::new("m", "localhost", None);
    let fit = |job: &Job, window: Option<u32>| {
        let mut conversation = begin(job, &product);
        let fitted = conversation.fit(job, &prompt, &task, (window, &estimator), Structured::JsonSchema);
        (fitted.map(|estimate| estimate.tokens), conversation)
    };
    let whole = fit(&job, None).0.unwrap();
    assert!(whole > 2_000, "{whole}");
    assert_eq!(fit(&job, Some(u32::try_from(whole).unwrap() + 100)).0, Ok(whole), "it fits to the token");
    let told = fit(&job, Some(u32::try_from(whole).unwrap() + 99)).0.unwrap_err();
    assert_eq!(told.class, FailureClass::ContextTooLong);
    assert!(told.message.contains("window"), "{}", told.message);
    job.llm.on_overflow = OnOverflow::Truncate;
    let (fitted, conversation) = fit(&job, Some(1_000));
    assert!(fitted.as_ref().is_ok_and(|tokens| *tokens <= 900), "{fitted:?}");
    let shortened = conversation.shortened.unwrap();
    assert_eq!(shortened.field, "variants.0.text");
    assert!((4_000..8_000).contains(&shortened.removed_bytes), "{shortened:?}");
    assert!(conversation.first[1].content.contains("\"Mug\""), "the rest is whole");
    assert_eq!(
        fit(&job, Some(110)).0.unwrap_err().class,
        FailureClass::ContextTooLong,
        "nothing is left to cut"
    );
}
