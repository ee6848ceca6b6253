//! A product as templates see it: a map of its fields, which is made when a template looks into it.
//!
//! Most templates show the whole product as JSON, which needs no map: [`tojson`] goes from the JSON that came to the JSON
//! that is shown in one pass, and numbers keep their spelling.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use minijinja::{
    Error, ErrorKind, Value,
    value::{Enumerator, Kwargs, Object},
};
use serde_json::value::RawValue;

use super::layout::laid_out;

#[derive(Debug)]
struct Product {
    json: Box<str>,
    fields: OnceLock<Value>,
}

/// The product of this JSON.
pub(super) fn value_of(product: &RawValue) -> Result<Value, serde_json::Error> {
    if product.get().starts_with('{') {
        Ok(Value::from_object(Product { json: product.get().into(), fields: OnceLock::new() }))
    } else {
        // No product of ours. What a template can do with it, it says.
        serde_json::from_str(product.get())
    }
}

impl Product {
    /// Undefined where the JSON cannot be read, so that nothing can be made of it.
    fn fields(&self) -> &Value {
        self.fields.get_or_init(|| serde_json::from_str(&self.json).unwrap_or_default())
    }
}

impl Object for Product {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.fields().get_item(key).ok().filter(|value| !value.is_undefined())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.fields().as_object().map_or(Enumerator::NonEnumerable, |fields| fields.enumerate())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.fields().len()
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fields().is_undefined() { Err(fmt::Error) } else { fmt::Display::fmt(self.fields(), f) }
    }
}

/// JSON as it is: the built-in filter escapes it for HTML, which only costs a model tokens.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let is_indented = options.get::<Option<usize>>("indent")?.is_some();
    options.assert_all_used()?;
    let json = match value.downcast_object_ref::<Product>() {
        Some(product) => laid_out(&product.json, is_indented),
        None if is_indented => serde_json::to_string_pretty(value),
        None => serde_json::to_string(value),
    };
    json.map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};

    use super::*;

    const PRODUCT: &str = r#"{"z":1,"title":"<b>\u00e9 \"&\"\n</b>","price":12.5,"none":null,"on":true,"big":1000.0,"tags":["a",{}],"size":{"w":-3,"e":[]}}"#;

    fn environment() -> Environment<'static> {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        environment
    }

    #[test]
    fn a_template_cannot_tell_it_from_a_map_but_by_the_spelling_of_numbers() {
        let lazy = value_of(&RawValue::from_string(PRODUCT.to_owned()).unwrap()).unwrap();
        let map: Value = serde_json::from_str(PRODUCT).unwrap();
        let environment = environment();
        for template in [
            "{{ product }}",
            "{{ product | tojson }}",
            "{{ product | tojson(indent=2) }}",
            "{{ [product] | tojson }} {{ product.size | tojson }}",
            "{{ product.title }}, {{ product['price'] * 2 }}, {{ product.size.w }}, {{ product.tags[0] }}",
            "{% for name, value in product | items %}{{ name }}={{ value }};{% endfor %}",
            "{% for name in product %}{{ name }},{% endfor %}{{ product | length }}",
            "{{ product is mapping }} {{ 'z' in product }} {{ 'y' in product }} {{ product == product }}",
            "{{ product.y is defined }} {{ product.none is none }} {{ 'yes' if product else 'no' }}",
            "{{ product | dictsort | first }} {{ product | list }} {{ product | string | length }}",
        ] {
            let render = |product: &Value| environment.render_str(template, context! { product });
            assert_eq!(render(&lazy).unwrap(), render(&map).unwrap(), "{template}");
        }
    }

    #[test]
    fn json_that_cannot_be_read_is_an_error_where_it_is_shown() {
        let deep = format!("{{\"a\":{}1{}}}", "[".repeat(200), "]".repeat(200));
        let product = value_of(&RawValue::from_string(deep).unwrap()).unwrap();
        let mut environment = environment();
        environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
        for template in [
            "{{ product | tojson }}",
            "{{ product }}",
            "{{ product.a }}",
            "{% for name in product %}{{ name }}{% endfor %}",
        ] {
            assert!(
                environment.render_str(template, context! { product => &product }).is_err(),
                "{template}"
            );
        }
    }
}
