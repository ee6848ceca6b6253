use super::*;

const PROMPT: &str = r#"{"id": "sku-1", "title": "Blue stoneware mug", "price": 12.5}"#;

/// One schema a line, so that each can be tried elsewhere as it stands.
fn schemas() -> Vec<(String, Value)> {
    let lines = include_str!("schemas.jsonl").lines();
    let entries = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    entries.map(|mut entry| (entry["name"].to_string(), entry["schema"].take())).collect()
}

fn instance(contract: &Contract, seed: u64) -> Option<Value> {
    let mut dice = Dice::new(seed);
    let subject = Subject::of(PROMPT, "sku-1", &mut dice);
    contract.instance(&subject, dice)
}

#[test]
fn instances_keep_every_schema() {
    for (name, schema) in schemas() {
        let contract = Contract::parse(&schema.to_string()).unwrap_or_else(|error| panic!("{name}: {error}"));
        // Not the contract's own validator: this one is strict about formats too.
        let strict = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        for seed in 0..200 {
            let made = instance(&contract, seed).unwrap_or_else(|| panic!("{name}: nothing for seed {seed}"));
            if let Err(error) = strict.validate(&made) {
                panic!("{name}: {made} is refused: {error}");
            }
        }
    }
}

#[test]
fn violations_break_every_schema_that_can_be_broken() {
    for (name, schema) in schemas() {
        let contract = Contract::parse(&schema.to_string()).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        for seed in 0..50 {
            let made = instance(&contract, seed).unwrap();
            let violation = contract.violation(&made, &mut Dice::new(seed)).unwrap();
            assert!(!validator.is_valid(&violation), "{name}: {violation} is accepted");
        }
    }
    let anything = Contract::parse("{}").unwrap();
    assert_eq!(anything.violation(&json!(1), &mut Dice::new(0)), None);
}

#[test]
fn the_same_product_gets_the_same_answer() {
    for (name, schema) in schemas() {
        let first = Contract::parse(&schema.to_string()).unwrap();
        let second = Contract::parse(&schema.to_string()).unwrap();
        assert_eq!(instance(&first, 9), instance(&second, 9), "{name}");
    }
}

#[test]
fn schemas_without_instances_are_errors() {
    for (schema, told) in [
        ("[1]", "must be a JSON object"),
        (r#"{"type": "text"}"#, "text"),
        (r##"{"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}}"##, "/$defs/none"),
        (r#"{"allOf": [{"type": "string"}, {"type": "null"}]}"#, "no JSON value satisfies it"),
        (r#"{"$ref": "https://example.com/elsewhere.json"}"#, "elsewhere.json"),
    ] {
        let error = Contract::parse(schema).err().unwrap_or_else(|| panic!("{schema} was accepted"));
        assert!(error.contains(told), "{schema}: {error}");
    }
    let contract = Contract::parse(r#"{"type": "string", "not": {"type": "string"}}"#).unwrap();
    assert_eq!(instance(&contract, 1), None);
}

#[test]
fn contracts_are_kept_by_their_bytes_and_bounded() {
    let contracts = Contracts::new().unwrap();
    let raw = |number: usize| format!(r#"{{"type": "integer", "minimum": {number}}}"#);
    let first = contracts.of(&raw(0)).unwrap();
    assert!(Arc::ptr_eq(&first, &contracts.of(&raw(0)).unwrap()));
    for number in 1..=MAX_CONTRACTS {
        contracts.of(&raw(number)).unwrap();
    }
    assert_eq!(contracts.kept.read().unwrap().len(), MAX_CONTRACTS);
    assert!(!Arc::ptr_eq(&first, &contracts.of(&raw(0)).unwrap()));
}
