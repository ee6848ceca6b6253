//! From a product to the messages of a request.
//!
//! Templates are compiled once. Undefined fields are errors, not empty strings: a prompt with a hole in it
//! costs as much as a good one. Products are data: no template syntax in a product is ever evaluated.

use std::sync::Arc;

use minijinja::{Environment, UndefinedBehavior, context};
use serde_json::value::RawValue;

use super::{Message, PromptTemplates};

mod layout;
mod product;

const SYSTEM: &str = "prompt.system";
const USER: &str = "prompt.user";
/// What a template may do before it is stopped; the built-in one takes about a hundred steps.
const FUEL: u64 = 1_000_000;

/// Compiled templates.
#[derive(Debug)]
pub struct Prompt {
    environment: Environment<'static>,
    system: System,
}

#[derive(Debug)]
enum System {
    None,
    /// The same for all products.
    Constant(Arc<str>),
    Rendered,
}

/// Why a prompt cannot be made; the text names template and line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PromptError(String);

impl From<minijinja::Error> for PromptError {
    fn from(error: minijinja::Error) -> Self {
        let place = match (error.name(), error.line()) {
            (Some(name), Some(line)) => format!("{name}, line {line}: "),
            _ => String::new(),
        };
        let detail = error.detail().map_or_else(|| error.kind().to_string(), ToOwned::to_owned);
        let detail = match error.kind() {
            minijinja::ErrorKind::UndefinedError => format!("undefined: {detail}"),
            _ => detail,
        };
        Self(format!("{place}{detail}"))
    }
}

impl Prompt {
    /// Compiles both templates; all errors are told.
    pub fn compile(templates: &PromptTemplates) -> Result<Self, Vec<PromptError>> {
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.add_filter("tojson", product::tojson);
        let mut errors = Vec::new();
        let mut add = |name: &'static str, source: &str| {
            if let Err(error) = environment.add_template_owned(name, source.to_owned()) {
                errors.push(PromptError::from(error));
            }
        };
        if let Some(system) = &templates.system {
            add(SYSTEM, system);
        }
        add(USER, &templates.user);
        if !errors.is_empty() {
            return Err(errors);
        }
        let system = if templates.system.is_some() { System::Rendered } else { System::None };
        let mut prompt = Self { environment, system };
        let mut unknown = prompt.unknown_names();
        unknown.extend(prompt.unknown_functions());
        if !unknown.is_empty() {
            return Err(unknown);
        }
        if let Some(constant) = prompt.constant_system() {
            prompt.system = System::Constant(constant);
        }
        Ok(prompt)
    }

    /// One that names neither product nor id. What goes wrong in it is told where products are.
    fn constant_system(&self) -> Option<Arc<str>> {
        let template = self.environment.get_template(SYSTEM).ok()?;
        let names_a_product = template
            .undeclared_variables(false)
            .iter()
            .any(|name| ["product", "id"].contains(&name.as_str()));
        if names_a_product { None } else { template.render(()).ok().map(Arc::from) }
    }

    /// Filters, tests and functions that do not exist show only when a template runs: it runs once, over a
    /// product without fields, and whatever else goes wrong then is not the template's fault.
    fn unknown_functions(&mut self) -> Vec<PromptError> {
        use minijinja::ErrorKind::{UnknownFilter, UnknownFunction, UnknownTest};
        self.environment.set_undefined_behavior(UndefinedBehavior::Chainable);
        let values = context! { id => "", product => minijinja::Value::from(minijinja::value::Serde(&())) };
        let errors = self
            .environment
            .templates()
            .filter_map(|(_, template)| template.render(&values).err())
            .filter(|error| matches!(error.kind(), UnknownFilter | UnknownFunction | UnknownTest))
            .map(PromptError::from)
            .collect();
        self.environment.set_undefined_behavior(UndefinedBehavior::Strict);
        errors
    }

    /// Names besides `product` and `id` can be told without a product.
    fn unknown_names(&self) -> Vec<PromptError> {
        let mut errors = Vec::new();
        for (name, template) in self.environment.templates() {
            let mut names: Vec<String> = template
                .undeclared_variables(false)
                .into_iter()
                .filter(|found| !["product", "id"].contains(&found.as_str()))
                .filter(|found| self.environment.globals().all(|(global, _)| global != found))
                .collect();
            names.sort();
            errors.extend(names.into_iter().map(|found| {
                PromptError(format!("{name}: '{found}' is not defined (there are: product, id)"))
            }));
        }
        errors
    }

    /// Whether a template has the product's id in it, so that no two prompts are equal.
    #[must_use]
    pub fn names_id(&self) -> bool {
        self.environment.templates().any(|(_, template)| template.undeclared_variables(false).contains("id"))
    }

    /// The messages that ask for this product.
    pub fn render(&self, id: &str, product: &RawValue) -> Result<Vec<Message>, PromptError> {
        let product = product::value_of(product).map_err(|error| PromptError(error.to_string()))?;
        let values = context! { id => id, product => product };
        let render = |name| Ok::<_, PromptError>(self.environment.get_template(name)?.render(&values)?);
        let mut messages = Vec::with_capacity(2);
        match &self.system {
            System::None => {}
            System::Constant(content) => messages.push(Message::new("system", Arc::clone(content))),
            System::Rendered => messages.push(Message::new("system", render(SYSTEM)?)),
        }
        messages.push(Message::new("user", render(USER)?));
        Ok(messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn templates(user: &str) -> PromptTemplates {
        PromptTemplates { system: None, user: user.to_owned() }
    }

    fn product(json: &str) -> Box<RawValue> {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_product_is_data_and_never_a_template() {
        let prompt = Prompt::compile(&templates("{{ id }}: {{ product.title }}")).unwrap();
        let messages = prompt.render("7", &product(r#"{"title":"{{ id }} <b>&</b>"}"#)).unwrap();
        assert_eq!(&*messages[0].content, "7: {{ id }} <b>&</b>");
    }

    #[test]
    fn fields_keep_their_order() {
        let prompt = Prompt::compile(&templates("{{ product | tojson }}")).unwrap();
        let messages = prompt.render("7", &product(r#"{"z":1,"a":"<b>&</b>"}"#)).unwrap();
        assert_eq!(&*messages[0].content, r#"{"z":1,"a":"<b>&</b>"}"#);
    }

    #[test]
    fn an_undefined_field_is_an_error_with_its_place() {
        let prompt = Prompt::compile(&templates("{{ id }}\n{{ product.colour }}")).unwrap();
        let told = prompt.render("7", &product("{}")).unwrap_err().to_string();
        assert!(told.contains("prompt.user, line 2"), "{told}");
    }

    #[test]
    fn every_bad_template_is_told() {
        let both = PromptTemplates { system: Some("{{ id".into()), user: "{% if %}".into() };
        assert_eq!(Prompt::compile(&both).unwrap_err().len(), 2);
        let told = Prompt::compile(&templates("{{ title }}")).unwrap_err().remove(0).to_string();
        assert!(told.contains("'title' is not defined"), "{told}");
    }

    #[test]
    fn a_filter_that_does_not_exist_is_told_without_a_product() {
        let told =
            Prompt::compile(&templates("{{ product.title | shorten }}")).unwrap_err().remove(0).to_string();
        assert!(told.contains("shorten") && told.contains("line 1"), "{told}");
        Prompt::compile(&templates("{{ product.title | upper }} {{ product.price * 2 }}")).unwrap();
    }

    #[test]
    fn a_template_that_never_ends_is_stopped() {
        let prompt = Prompt::compile(&templates(
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
        ))
        .unwrap();
        prompt.render("7", &product("{}")).unwrap_err();
    }
}
