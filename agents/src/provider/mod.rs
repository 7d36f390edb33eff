//! Model providers: the wire formats, and the registry that builds them from Provider documents.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use callboard_runtime::{
    document,
    documents::Documents,
    outbound::{OutboundClient, parse_url},
    provider::{ModelError, ModelErrorKind, ModelProvider},
};

pub mod openai;
pub mod scripted;

pub use crate::model::provider::compile;
use crate::model::provider::{OpenAiDefinition, ProviderDefinition, expand};

/// The providers that documents declare, each built once per version.
pub struct Providers {
    documents: Documents,
    outbound: OutboundClient,
    built: Mutex<HashMap<String, Built>>,
}

/// A provider and the version it was built from.
type Built = (i32, Arc<dyn ModelProvider>);

impl Providers {
    /// None is built yet.
    pub fn new(documents: Documents, outbound: OutboundClient) -> Self {
        Self {
            documents,
            outbound,
            built: Mutex::default(),
        }
    }

    /// The provider of this name, as its document says now. A missing, disabled or faulty one is `NotFound`: waiting is no
    /// use, but another model may serve.
    pub fn find(&self, name: &str) -> Result<Arc<dyn ModelProvider>, ModelError> {
        let Some(stored) = self.documents.find("Provider", name) else {
            self.forget(name);
            return Err(unusable(format!("there is no provider `{name}`")));
        };
        if !stored.enabled {
            return Err(unusable(format!("the provider `{name}` is disabled")));
        }
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((version, provider)) = built.get(name)
            && *version == stored.version
        {
            return Ok(provider.clone());
        }
        let definition = document::from_value((*stored.body).clone())
            .and_then(|document| compile(&document))
            .map_err(|faults| {
                let first = faults.first().map(ToString::to_string).unwrap_or_default();
                unusable(format!("the provider `{name}` is faulty: {first}"))
            })?;
        let provider = self
            .build(definition)
            .map_err(|fault| unusable(format!("the provider `{name}` cannot be used: {fault}")))?;
        built.insert(name.to_owned(), (stored.version, provider.clone()));
        Ok(provider)
    }

    fn forget(&self, name: &str) {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        built.remove(name);
    }

    fn build(&self, definition: ProviderDefinition) -> Result<Arc<dyn ModelProvider>, String> {
        Ok(match definition {
            ProviderDefinition::OpenAi(openai) => {
                let settings = settings(&openai, &|name| std::env::var(name).ok())?;
                Arc::new(openai::OpenAi::new(settings, self.outbound.clone())?)
            }
            ProviderDefinition::Scripted(script) => Arc::new(scripted::Scripted::new(script)),
        })
    }
}

/// The settings with their variables read.
fn settings(
    definition: &OpenAiDefinition,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<openai::OpenAiSettings, String> {
    let base_url = expand(&definition.base_url, variable)?;
    let base_url = parse_url(&base_url).map_err(|fault| format!("base_url: {fault}"))?;
    if !base_url.username().is_empty() || base_url.password().is_some() {
        return Err("base_url: it cannot hold a user or password".to_owned());
    }
    Ok(openai::OpenAiSettings {
        base_url,
        api_key: expand(&definition.api_key, variable)?.trim().to_owned(),
        timeout: definition.timeout,
        idle_timeout: definition.idle_timeout,
    })
}

fn unusable(message: String) -> ModelError {
    ModelError {
        kind: ModelErrorKind::NotFound,
        message,
        status: None,
        retry_after: None,
    }
}
