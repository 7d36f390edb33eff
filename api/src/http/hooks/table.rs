//! Which workflow claims a method and path.

use std::{collections::HashMap, sync::Arc};

/// Names and values of a pattern's parameters.
pub type Params = Vec<(String, String)>;

/// Claims by method and path pattern. Fixed segments win over parameters, segment by segment from the left.
pub struct Table<T> {
    methods: HashMap<String, Node<T>>,
}

struct Node<T> {
    fixed: HashMap<Box<str>, Node<T>>,
    parameter: Option<Box<Node<T>>>,
    claim: Option<Claim<T>>,
}

struct Claim<T> {
    names: Vec<Box<str>>,
    value: Arc<T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            methods: HashMap::new(),
        }
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self {
            fixed: HashMap::new(),
            parameter: None,
            claim: None,
        }
    }
}

/// The name of a parameter segment such as `{id}`.
fn parameter(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.trim_matches('/').split('/')
}

/// The pattern with its parameters' names taken out: two patterns that claim the same requests are equal in it.
pub fn shape(path: &str) -> String {
    segments(path)
        .flat_map(|segment| {
            [
                "/",
                if parameter(segment).is_some() {
                    "{}"
                } else {
                    segment
                },
            ]
        })
        .collect()
}

impl<T> Table<T> {
    /// Claims a pattern. What claimed it before keeps it and is returned.
    pub fn claim(&mut self, method: &str, pattern: &str, value: T) -> Result<(), Arc<T>> {
        let mut node = self.methods.entry(method.to_owned()).or_default();
        let mut names = Vec::new();
        for segment in segments(pattern) {
            node = match parameter(segment) {
                Some(name) => {
                    names.push(name.into());
                    node.parameter.get_or_insert_default()
                }
                None => node.fixed.entry(segment.into()).or_default(),
            };
        }
        match &node.claim {
            Some(claim) => Err(claim.value.clone()),
            None => {
                node.claim = Some(Claim {
                    names,
                    value: Arc::new(value),
                });
                Ok(())
            }
        }
    }

    /// Who claims a request, and the values of the pattern's parameters. `path` is as it was sent: its segments are
    /// decoded here, so that an encoded slash does not end one.
    pub fn find(&self, method: &str, path: &str) -> Option<(Arc<T>, Params)> {
        let parts: Vec<String> = segments(path).map(decode).collect();
        let mut values = Vec::new();
        let claim = self.methods.get(method)?.find(&parts, &mut values)?;
        let names = claim.names.iter().map(|name| name.as_ref().to_owned());
        Some((
            claim.value.clone(),
            names.zip(values.into_iter().map(str::to_owned)).collect(),
        ))
    }
}

impl<T> Node<T> {
    fn find<'p>(&self, parts: &'p [String], values: &mut Vec<&'p str>) -> Option<&Claim<T>> {
        let Some((part, rest)) = parts.split_first() else {
            return self.claim.as_ref();
        };
        if let Some(claim) = self
            .fixed
            .get(part.as_str())
            .and_then(|node| node.find(rest, values))
        {
            return Some(claim);
        }
        let node = self.parameter.as_ref().filter(|_| !part.is_empty())?;
        values.push(part);
        let found = node.find(rest, values);
        if found.is_none() {
            values.pop();
        }
        found
    }
}

/// Percent-decoding; what is no valid encoding stays as it is.
fn decode(segment: &str) -> String {
    percent_encoding::percent_decode_str(segment)
        .decode_utf8_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(patterns: &[&'static str]) -> Table<&'static str> {
        let mut table = Table::default();
        for pattern in patterns {
            assert!(table.claim("POST", pattern, *pattern).is_ok(), "{pattern}");
        }
        table
    }

    fn found(
        table: &Table<&'static str>,
        path: &str,
    ) -> Option<(&'static str, Vec<(String, String)>)> {
        table
            .find("POST", path)
            .map(|(value, params)| (*value, params))
    }

    #[test]
    fn fixed_segments_win_and_parameters_take_the_rest() {
        let table = table(&[
            "/leads",
            "/leads/{id}",
            "/leads/new",
            "/leads/{id}/notes/{note}",
            "/leads/new/x",
        ]);
        assert_eq!(found(&table, "/leads/"), Some(("/leads", vec![])));
        assert_eq!(found(&table, "/leads/new"), Some(("/leads/new", vec![])));
        assert_eq!(
            found(&table, "/leads/7"),
            Some(("/leads/{id}", vec![("id".into(), "7".into())]))
        );
        assert_eq!(
            found(&table, "/leads/new/notes/3"),
            Some((
                "/leads/{id}/notes/{note}",
                vec![("id".into(), "new".into()), ("note".into(), "3".into())]
            )),
            "a fixed segment that leads nowhere is given up"
        );
        assert_eq!(found(&table, "/leads/7/8"), None);
        assert_eq!(found(&table, "/other"), None);
        assert!(table.find("GET", "/leads").is_none());
    }

    #[test]
    fn an_encoded_slash_does_not_end_a_segment() {
        let table = table(&["/files/{name}"]);
        assert_eq!(
            found(&table, "/files/a%2Fb%20%zz")
                .expect("it is claimed")
                .1[0]
                .1,
            "a/b %zz"
        );
        assert_eq!(found(&table, "/files//"), None);
    }

    #[test]
    fn the_first_claim_stays() {
        let mut table = table(&["/a/{x}"]);
        assert_eq!(
            table
                .claim("POST", "a/{y}/", "second")
                .map_err(|first| *first),
            Err("/a/{x}")
        );
        assert_eq!(shape("/a/{x}"), shape("a/{y}/"));
    }
}
