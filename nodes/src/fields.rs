//! Paths such as `customer.emails[0]`, by which parameters name parts of an item.
//!
//! As in n8n, a member whose name is the whole path wins over the path. A number after a dot is an index in a
//! list and a name in an object; only `[n]` makes a list where there is none.

use serde::{Deserialize, Deserializer, de};
use serde_json::{Map, Value};

/// Parts of a path.
const SEGMENTS_MAX: usize = 64;
/// The highest index that may be written to: a list is filled up to it.
const INDEX_MAX: usize = 10_000;
/// Paths in one parameter.
const FIELDS_MAX: usize = 256;

/// A path into an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    text: String,
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Name(String),
    Index(usize),
}

impl Segment {
    fn index(&self) -> Option<usize> {
        match self {
            Self::Name(name) => name.parse().ok(),
            Self::Index(index) => Some(*index),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Index(index) => index.to_string(),
        }
    }

    fn get<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        match value {
            Value::Array(elements) => elements.get(self.index()?),
            Value::Object(members) => members.get(&self.name()),
            _ => None,
        }
    }

    fn get_mut<'v>(&self, value: &'v mut Value) -> Option<&'v mut Value> {
        match value {
            Value::Array(elements) => elements.get_mut(self.index()?),
            Value::Object(members) => members.get_mut(&self.name()),
            _ => None,
        }
    }
}

impl Path {
    /// Reads a path. A leading `$json.` may be there. The error is a sentence.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let text = text.strip_prefix("$json.").unwrap_or(text);
        let fault = || format!("`{text}` is no path such as a.b or a[0].c");
        let mut segments = Vec::new();
        for (i, part) in split(text).ok_or_else(fault)?.into_iter().enumerate() {
            if matches!(&part, Segment::Index(index) if i == 0 || *index > INDEX_MAX) {
                return Err(fault());
            }
            segments.push(part);
        }
        // Scripts see items as objects, where this name reaches what all objects share.
        if segments.contains(&Segment::Name("__proto__".to_owned())) {
            return Err("a path may not go through `__proto__`".to_owned());
        }
        if segments.is_empty() || segments.len() > SEGMENTS_MAX {
            return Err(fault());
        }
        Ok(Self {
            text: text.to_owned(),
            segments,
        })
    }

    /// As written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The name at its end.
    pub(crate) fn last(&self) -> String {
        self.segments.last().map(Segment::name).unwrap_or_default()
    }

    /// What is there.
    pub(crate) fn get<'v>(&self, object: &'v Value) -> Option<&'v Value> {
        if let Some(value) = object.get(&self.text) {
            return Some(value);
        }
        let mut value = object;
        for segment in &self.segments {
            value = segment.get(value)?;
        }
        Some(value)
    }

    /// Puts a value there; what is in the way and neither list nor object is replaced.
    pub(crate) fn set(&self, object: &mut Map<String, Value>, value: Value) {
        if object.contains_key(&self.text) {
            object.insert(self.text.clone(), value);
            return;
        }
        let mut segments = self.segments.iter().peekable();
        let Some(first) = segments.next() else { return };
        let mut place = object.entry(first.name()).or_insert(Value::Null);
        for segment in segments {
            place = descend(place, segment);
        }
        *place = value;
    }

    /// Bytes of what lists are filled up with at most when it is set.
    pub(crate) fn padding(&self) -> usize {
        const NULL_BYTES: usize = 5;
        let indexes = self.segments.iter().filter_map(Segment::index);
        indexes.map(|index| index.min(INDEX_MAX) * NULL_BYTES).sum()
    }

    /// Takes away what is there.
    pub(crate) fn remove(&self, object: &mut Map<String, Value>) {
        if object.shift_remove(&self.text).is_some() {
            return;
        }
        let Some((last, parents)) = self.segments.split_last() else {
            return;
        };
        let Some((first, rest)) = parents.split_first() else {
            return;
        };
        let mut place = object.get_mut(&first.name());
        for segment in rest {
            place = place.and_then(|value| segment.get_mut(value));
        }
        match (place, last.index()) {
            (Some(Value::Object(members)), _) => {
                members.shift_remove(&last.name());
            }
            // As `delete` of JavaScript: the others keep their places.
            (Some(Value::Array(elements)), Some(index)) if index < elements.len() => {
                elements[index] = Value::Null;
            }
            _ => {}
        }
    }
}

fn descend<'v>(place: &'v mut Value, segment: &Segment) -> &'v mut Value {
    let fits = match (&*place, segment) {
        (Value::Array(_), segment) => segment.index().is_some_and(|index| index <= INDEX_MAX),
        (Value::Object(_), _) => true,
        _ => false,
    };
    if !fits {
        *place = match segment {
            Segment::Name(_) => Value::Object(Map::new()),
            Segment::Index(_) => Value::Array(Vec::new()),
        };
    }
    match place {
        Value::Array(elements) => {
            let index = segment.index().unwrap_or_default();
            if elements.len() <= index {
                elements.resize(index + 1, Value::Null);
            }
            &mut elements[index]
        }
        Value::Object(members) => members.entry(segment.name()).or_insert(Value::Null),
        other => other,
    }
}

/// `a.b[0]["c.d"]` in parts.
fn split(text: &str) -> Option<Vec<Segment>> {
    let mut segments = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let quote = inner.chars().next().filter(|c| matches!(c, '"' | '\''));
            let end = match quote {
                Some(quote) => format!("{quote}]"),
                None => "]".to_owned(),
            };
            let inner = &inner[quote.map_or(0, char::len_utf8)..];
            let (part, after) = inner.split_once(&end)?;
            segments.push(match quote {
                Some(_) => Segment::Name(part.to_owned()),
                None => Segment::Index(part.parse().ok()?),
            });
            rest = after;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            if end == 0 {
                return None;
            }
            segments.push(Segment::Name(rest[..end].to_owned()));
            rest = &rest[end..];
        }
        if let Some(after) = rest.strip_prefix('.') {
            if after.is_empty() {
                return None;
            }
            rest = after;
        }
    }
    Some(segments)
}

impl<'de> Deserialize<'de> for Path {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Several paths: a list, or text with commas between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields(pub Vec<Path>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "expected a list of paths, or text with commas between them"
        )]
        enum Written {
            Text(String),
            List(Vec<String>),
        }
        let texts = match Written::deserialize(deserializer)? {
            Written::Text(text) => text
                .split(',')
                .map(str::trim)
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect(),
            Written::List(list) => list,
        };
        if texts.len() > FIELDS_MAX {
            return Err(de::Error::custom(format!("at most {FIELDS_MAX} paths")));
        }
        let paths = texts
            .iter()
            .map(|text| Path::parse(text).map_err(de::Error::custom));
        paths.collect::<Result<_, _>>().map(Self)
    }
}

/// The schema of [`Fields`].
pub(crate) fn schema(description: &str) -> Value {
    serde_json::json!({
        "description": description,
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(text: &str) -> Path {
        Path::parse(text).unwrap()
    }

    fn set(into: Value, text: &str, value: Value) -> Value {
        let Value::Object(mut object) = into else {
            panic!("no object")
        };
        path(text).set(&mut object, value);
        Value::Object(object)
    }

    fn remove(from: Value, text: &str) -> Value {
        let Value::Object(mut object) = from else {
            panic!("no object")
        };
        path(text).remove(&mut object);
        Value::Object(object)
    }

    #[test]
    fn a_path_leads_through_objects_and_lists() {
        let item = json!({"a": {"b": [{"c": 1}]}, "x.y": 2, "x": {"y": 3}, "q": {"d.e": 4}, "n": {"0": 5}});
        for (text, found) in [
            ("a.b[0].c", Some(json!(1))),
            ("a.b.0.c", Some(json!(1))),
            ("$json.a.b[0]['c']", Some(json!(1))),
            ("x.y", Some(json!(2))),
            ("q[\"d.e\"]", Some(json!(4))),
            ("n.0", Some(json!(5))),
            ("n[0]", Some(json!(5))),
            ("a.b.1", None),
            ("a.c.d", None),
            ("x.y.z", None),
        ] {
            assert_eq!(path(text).get(&item), found.as_ref(), "{text}");
        }
    }

    #[test]
    fn setting_makes_what_is_missing() {
        assert_eq!(set(json!({}), "a.b", json!(1)), json!({"a": {"b": 1}}));
        assert_eq!(
            set(json!({"a": 5}), "a.b", json!(1)),
            json!({"a": {"b": 1}})
        );
        assert_eq!(
            set(json!({}), "a[1].b", json!(1)),
            json!({"a": [null, {"b": 1}]})
        );
        assert_eq!(
            set(json!({}), "a.2024", json!(1)),
            json!({"a": {"2024": 1}})
        );
        assert_eq!(
            set(json!({"a": [0, 0]}), "a.1", json!(1)),
            json!({"a": [0, 1]})
        );
        assert_eq!(
            set(json!({"a": [0]}), "a.b", json!(1)),
            json!({"a": {"b": 1}})
        );
        assert_eq!(set(json!({"a.b": 0}), "a.b", json!(1)), json!({"a.b": 1}));
    }

    #[test]
    fn removing_keeps_the_rest() {
        assert_eq!(
            remove(json!({"a": {"b": 1, "c": 2}}), "a.b"),
            json!({"a": {"c": 2}})
        );
        assert_eq!(remove(json!({"a": 1, "b": 2}), "a"), json!({"b": 2}));
        assert_eq!(
            remove(json!({"a": [1, 2]}), "a[0]"),
            json!({"a": [null, 2]})
        );
        assert_eq!(remove(json!({"a": 1}), "b.c"), json!({"a": 1}));
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "[0]",
            "a[",
            "a[x]",
            "a[-1]",
            "a[10001]",
            "a.__proto__.b",
        ] {
            assert!(Path::parse(text).is_err(), "{text}");
        }
        assert!(Path::parse(&"a.".repeat(SEGMENTS_MAX + 1)).is_err());
    }

    #[test]
    fn several_paths_are_a_list_or_text_with_commas() {
        let read = |value: Value| {
            serde_json::from_value::<Fields>(value).map_err(|fault| fault.to_string())
        };
        let two = Fields(vec![path("a"), path("b.c")]);
        assert_eq!(read(json!("a, b.c")), Ok(two.clone()));
        assert_eq!(read(json!(["a", "b.c"])), Ok(two));
        assert!(read(json!(5)).unwrap_err().contains("list of paths"));
        assert!(read(json!(["a."])).unwrap_err().contains("no path"));
    }
}
