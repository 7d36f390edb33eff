//! The OpenAPI document, its page, and what can be read off it.

use std::{borrow::Cow, sync::LazyLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use poem::{Endpoint, Response, endpoint::make_sync};
use poem_openapi::{OpenApi, OpenApiService};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

/// The interface's document, rendered once.
pub struct Docs {
    document: Value,
}

impl Docs {
    /// Of this service.
    pub fn new<T: OpenApi>(service: &OpenApiService<T, ()>) -> Self {
        // The generator writes JSON; if it did not, an empty document is all there would be to show.
        let mut document: Value = serde_json::from_str(&service.spec()).unwrap_or_default();
        say_what_may_be_null(&mut document);
        add_hooks(&mut document);
        Self { document }
    }

    /// Paths and methods of the document.
    pub fn operations(&self) -> Operations {
        Operations::read(&self.document)
    }

    /// Answers the document as JSON.
    pub fn document(&self) -> impl Endpoint + 'static {
        let text = self.document.to_string();
        make_sync(move |_| {
            Response::builder()
                .content_type("application/json")
                .body(text.clone())
        })
    }

    /// Answers a page to read it on and to try it out.
    pub fn page(&self) -> impl Endpoint + 'static {
        let document = self.document.to_string();
        let page = LazyLock::new(move || page(&document));
        make_sync(move |_| {
            let (html, policy) = &*page;
            Response::builder()
                .content_type("text/html; charset=utf-8")
                .header("Content-Security-Policy", policy)
                .header("X-Content-Type-Options", "nosniff")
                .header("X-Frame-Options", "DENY")
                .header("Referrer-Policy", "no-referrer")
                .body(html.clone())
        })
    }
}

/// The page and the policy under which exactly its own scripts run.
fn page(document: &str) -> (String, String) {
    let empty = OpenApiService::new((), "", "");
    // Inside a script element the text must not end the element.
    let html = empty
        .swagger_ui_html()
        .replace(&empty.spec(), &document.replace("</", "<\\/"));
    let html = html.replacen(
        "<title>Swagger UI</title>",
        "<title>Callboard API</title>",
        1,
    );
    let hashes: String = inline_scripts(&html)
        .map(|script| format!(" 'sha256-{}'", STANDARD.encode(Sha256::digest(script))))
        .collect();
    let policy = format!(
        "default-src 'none'; script-src{hashes}; style-src 'unsafe-inline'; img-src 'self' data:; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    (html, policy)
}

/// The texts of all script elements. What looks like one inside another is text.
fn inline_scripts(html: &str) -> impl Iterator<Item = &str> {
    let mut rest = html;
    std::iter::from_fn(move || {
        let (_, element) = rest.split_once("<script")?;
        let (_, content) = element.split_once('>')?;
        let (script, after) = content.split_once("</script>")?;
        rest = after;
        Some(script)
    })
}

/// Optional members of our answers are present as `null`; the generator does not say so.
fn say_what_may_be_null(document: &mut Value) {
    let Some(schemas) = document
        .pointer_mut("/components/schemas")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    for schema in schemas.values_mut() {
        let required = schema.get("required").cloned().unwrap_or_default();
        let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
            continue;
        };
        for (name, property) in properties {
            if required
                .as_array()
                .is_some_and(|names| names.contains(&json!(name)))
            {
                continue;
            }
            match property.get("$ref").cloned() {
                Some(reference) => {
                    *property = json!({ "nullable": true, "allOf": [{ "$ref": reference }] })
                }
                None if property.get("type").is_some() => property["nullable"] = true.into(),
                None => {}
            }
        }
    }
}

/// Webhooks come with workflows; the document says how they behave in general.
fn add_hooks(document: &mut Value) {
    let problem = json!({ "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } });
    let faults = json!({ "application/json": { "schema": { "$ref": "#/components/schemas/ValidationProblem" } } });
    let any = json!({ "application/json": { "schema": {} } });
    let operation = |method: &str| {
        let mut operation = json!({
            "summary": "Start a workflow by its webhook",
            "description": "The path and method are claimed by the workflow's webhook trigger. Unless the trigger is \
                `public`, the key needs `workflows:run` or the scope that the workflow names.",
            "operationId": format!("hook_{method}"),
            "tags": ["hooks"],
            "parameters": [
                { "name": "path", "in": "path", "required": true, "description": "May have several segments.", "schema": { "type": "string" } },
                { "name": "Idempotency-Key", "in": "header", "required": false, "description": "Repeating a request under the same key starts nothing new.", "schema": { "type": "string", "maxLength": 255 } },
            ],
            "security": [{ "key": [] }, {}],
            "responses": {
                "200": { "description": "The last step's item, or what a `respond` step says. With `respond: stream`, the execution's events.", "content": {
                    "application/json": { "schema": {} }, "text/event-stream": { "schema": { "type": "string" } } } },
                "202": { "description": "The execution goes on; `Location` says where to look.", "content": any },
            },
        });
        for (status, description) in [
            ("401", "No key, or not a valid one."),
            ("403", "The key lacks a scope, which `scope` names."),
            ("404", "No workflow claims this path and method."),
            (
                "409",
                "The idempotency key was used with another body, or the execution was cancelled.",
            ),
            ("413", "The body is too large."),
            ("415", "The content type is not supported."),
            ("429", "Too much is running."),
            ("500", "The execution failed; `execution_id` says which."),
            (
                "503",
                "The host is stopping, or its database does not answer.",
            ),
        ] {
            operation["responses"][status] =
                json!({ "description": description, "content": problem });
        }
        operation["responses"]["422"] = json!({ "description": "The body does not fit the workflow's `input_schema`.", "content": faults });
        if !matches!(method, "get" | "delete") {
            operation["requestBody"] = json!({ "required": false, "content": {
                "application/json": { "schema": {} },
                "application/x-www-form-urlencoded": { "schema": { "type": "object" } },
                "text/plain": { "schema": { "type": "string" } },
            } });
        }
        operation
    };
    let operations: Map<String, Value> = ["get", "post", "put", "patch", "delete"]
        .iter()
        .map(|method| ((*method).to_owned(), operation(method)))
        .collect();
    if let Some(paths) = document.get_mut("paths").and_then(Value::as_object_mut) {
        paths.insert("/hooks/{path}".to_owned(), operations.into());
    }
}

/// Paths that can only be read and are not in the document, since they show it.
const UNDOCUMENTED: [&str; 2] = ["/openapi.json", "/docs"];

/// Which methods each path has, as the document says.
pub struct Operations(Vec<(Vec<Segment>, String)>);

#[derive(PartialEq)]
enum Segment {
    Fixed(String),
    Any,
}

impl Operations {
    fn read(document: &Value) -> Self {
        let paths = document.get("paths").and_then(Value::as_object);
        let mut all: Vec<_> = paths
            .into_iter()
            .flatten()
            .map(|(path, operations)| {
                let mut methods: Vec<Cow<'_, str>> = operations
                    .as_object()
                    .into_iter()
                    .flat_map(Map::keys)
                    .map(|method| method.to_ascii_uppercase().into())
                    .collect();
                if methods.contains(&"GET".into()) {
                    methods.push("HEAD".into());
                }
                (segments(path), methods.join(", "))
            })
            .collect();
        for path in UNDOCUMENTED {
            all.push((segments(path), "GET, HEAD".to_owned()));
        }
        // Fixed segments win over parameters.
        all.sort_by_key(|(segments, _)| {
            segments
                .iter()
                .filter(|segment| **segment == Segment::Any)
                .count()
        });
        Self(all)
    }

    /// The methods of the path, for `Allow`; empty when it has none.
    pub fn methods(&self, path: &str) -> String {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let fits = |segments: &[Segment]| {
            segments.len() == parts.len()
                && segments
                    .iter()
                    .zip(&parts)
                    .all(|(segment, part)| match segment {
                        Segment::Fixed(text) => text == part,
                        Segment::Any => true,
                    })
        };
        self.0
            .iter()
            .find(|(segments, _)| fits(segments))
            .map(|(_, methods)| methods.clone())
            .unwrap_or_default()
    }
}

fn segments(path: &str) -> Vec<Segment> {
    path.trim_matches('/')
        .split('/')
        .map(|part| {
            if part.starts_with('{') {
                Segment::Any
            } else {
                Segment::Fixed(part.to_owned())
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_those_of_the_best_fitting_path() {
        let operations = Operations::read(&json!({ "paths": {
            "/v1/workflows/{name}": { "get": {}, "put": {} },
            "/v1/workflows/special": { "post": {} },
        } }));
        assert_eq!(operations.methods("/v1/workflows/a"), "GET, PUT, HEAD");
        assert_eq!(operations.methods("/v1/workflows/special"), "POST");
        assert_eq!(operations.methods("/v1/workflows"), "");
    }

    #[test]
    fn the_page_runs_no_script_but_its_own() {
        let (html, policy) = page(r#"{"info":{"title":"</script><script>alert(1)"}}"#);
        let scripts: Vec<&str> = inline_scripts(&html).collect();
        assert_eq!((scripts.len(), policy.matches("'sha256-").count()), (2, 2));
        assert!(
            scripts[0].len() > 1_000_000,
            "the first is the whole library"
        );
        assert!(scripts[1].contains("SwaggerUIBundle("));
        assert!(
            html.contains(r"<\/script><script>alert(1)"),
            "the document is in the page, and harmless"
        );
        assert!(!policy.contains("script-src 'unsafe-inline'"));
    }

    #[test]
    fn a_script_ends_where_the_browser_ends_it() {
        let html = "<script charset=x>a('<script>')</script><p><script>b</script>";
        assert_eq!(
            inline_scripts(html).collect::<Vec<_>>(),
            ["a('<script>')", "b"]
        );
    }

    #[test]
    fn optional_members_may_be_null() {
        let mut document = json!({ "components": { "schemas": { "A": { "required": ["a"], "properties": {
            "a": { "type": "string" }, "b": { "type": "string" }, "c": { "$ref": "#/x" }, "d": {},
        } } } } });
        say_what_may_be_null(&mut document);
        assert_eq!(
            document["components"]["schemas"]["A"]["properties"],
            json!({
                "a": { "type": "string" },
                "b": { "type": "string", "nullable": true },
                "c": { "nullable": true, "allOf": [{ "$ref": "#/x" }] },
                "d": {},
            })
        );
    }
}
