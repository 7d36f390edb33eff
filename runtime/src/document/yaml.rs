//! YAML 1.2 (core schema) into JSON values with places. Bounded in depth, in values and in text, aliases included.

use std::{borrow::Cow, collections::HashMap};

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput, Tag};
use serde_json::{Map, Number, Value};

use super::{
    DEPTH_MAX, FILE_BYTES_MAX, Fault, NODES_MAX,
    source::{Layout, Place, Places, Position, Source},
};

/// One document of a stream.
pub(super) struct Loaded {
    pub(super) body: Value,
    pub(super) source: Source,
}

/// Reads a stream of documents; empty ones are left out. The faults are those of syntax and of duplicate keys; what
/// was read before a fault of syntax is given all the same.
pub(super) fn load(text: &str, file: Option<&str>) -> (Vec<Loaded>, Vec<Fault>) {
    let mut loader = Loader {
        parser: Parser::new_from_str(text),
        file,
        lines: text.lines().collect(),
        places: Places::default(),
        path: Vec::new(),
        anchors: HashMap::new(),
        used: Weight::default(),
        faults: Vec::new(),
    };
    let mut documents = Vec::new();
    // An `Err` was recorded where it arose; nothing can be read behind it.
    let _ = loader.stream(&mut documents);
    (documents, loader.faults)
}

/// Reading cannot go on. The fault is recorded already.
struct Stop;

struct Loader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    file: Option<&'t str>,
    lines: Vec<&'t str>,
    places: Places,
    path: Vec<String>,
    anchors: HashMap<usize, Anchored>,
    used: Weight,
    faults: Vec<Fault>,
}

/// What an alias may repeat.
struct Anchored {
    value: Value,
    weight: Weight,
}

/// The size of a value. Aliases repeat values, so a file's length does not bound it.
#[derive(Clone, Copy, Default)]
struct Weight {
    nodes: usize,
    bytes: usize,
    depth: usize,
}

fn position(marker: Marker) -> Position {
    (marker.line(), marker.col() + 1)
}

impl<'t> Loader<'t> {
    fn stream(&mut self, documents: &mut Vec<Loaded>) -> Result<(), Stop> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(()),
                (Event::DocumentStart(_), _) => {}
                _ => continue,
            }
            let (event, span) = self.next()?;
            let (body, _) = self.node(event, span, None, 1)?;
            let places = std::mem::take(&mut self.places);
            if !body.is_null() {
                let source = places.into_source(self.file);
                documents.push(Loaded { body, source });
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Stop> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let at = position(*error.marker());
                Err(self.stop(at, format!("Invalid YAML: {}", error.info())))
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn fault(&mut self, at: Position, message: impl Into<String>) {
        self.faults.push(Fault {
            file: self.file.map(str::to_owned),
            position: Some(at),
            path: self.path.clone(),
            message: message.into(),
            kind: "value_error",
        });
    }

    fn stop(&mut self, at: Position, message: impl Into<String>) -> Stop {
        self.fault(at, message);
        Stop
    }

    /// Reads the value that begins with this event.
    fn node(
        &mut self,
        event: Event<'t>,
        span: Span,
        key: Option<Position>,
        depth: usize,
    ) -> Result<(Value, Weight), Stop> {
        let at = position(span.start);
        if depth > DEPTH_MAX {
            return Err(self.stop(at, format!("Nested deeper than {DEPTH_MAX} levels")));
        }
        let mut place = Place {
            value: at,
            name: key,
            layout: Layout::Opaque,
        };
        let (anchor, (value, weight)) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                place.layout = self.layout(&text, style, span);
                if text.is_empty() && style == ScalarStyle::Plain {
                    place.value = key.unwrap_or(at);
                }
                let bytes = text.len();
                let value = self.scalar(text, style, tag.as_deref(), at)?;
                (anchor, (value, self.spend(1, bytes, 1, at)?))
            }
            Event::SequenceStart(anchor, tag) => {
                self.collection_tag(tag.as_deref(), "seq", at)?;
                (anchor, self.sequence(depth, at)?)
            }
            Event::MappingStart(anchor, tag) => {
                self.collection_tag(tag.as_deref(), "map", at)?;
                (anchor, self.mapping(depth, at)?)
            }
            Event::Alias(anchor) => (0, self.alias(anchor, depth, at)?),
            other => return Err(self.stop(at, format!("Invalid YAML: unexpected {other:?}"))),
        };
        self.places.record(place);
        if anchor > 0 {
            let value = value.clone();
            self.anchors.insert(anchor, Anchored { value, weight });
        }
        Ok((value, weight))
    }

    /// Counts a value against what the whole stream may hold.
    fn spend(
        &mut self,
        nodes: usize,
        bytes: usize,
        depth: usize,
        at: Position,
    ) -> Result<Weight, Stop> {
        self.used.nodes += nodes;
        self.used.bytes += bytes;
        if self.used.nodes > NODES_MAX || self.used.bytes > 2 * FILE_BYTES_MAX {
            return Err(self.stop(
                at,
                format!("More than {NODES_MAX} values, aliases included"),
            ));
        }
        Ok(Weight {
            nodes,
            bytes,
            depth,
        })
    }

    fn alias(
        &mut self,
        anchor: usize,
        depth: usize,
        at: Position,
    ) -> Result<(Value, Weight), Stop> {
        // An anchor is known once its value is complete, so a value cannot hold itself.
        let Some(Anchored { weight, .. }) = self.anchors.get(&anchor) else {
            return Err(self.stop(at, "An alias cannot stand inside the value it names"));
        };
        let weight = *weight;
        if depth + weight.depth > DEPTH_MAX + 1 {
            return Err(self.stop(at, format!("Nested deeper than {DEPTH_MAX} levels")));
        }
        self.spend(weight.nodes, weight.bytes, weight.depth, at)?;
        Ok((self.anchors[&anchor].value.clone(), weight))
    }

    fn sequence(&mut self, depth: usize, at: Position) -> Result<(Value, Weight), Stop> {
        let mut whole = self.spend(1, 0, 1, at)?;
        let mut elements = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok((Value::Array(elements), whole));
            }
            let index = elements.len().to_string();
            let (value, weight) = self.child(&index, event, span, None, depth)?;
            whole.add(weight);
            elements.push(value);
        }
    }

    fn mapping(&mut self, depth: usize, at: Position) -> Result<(Value, Weight), Stop> {
        let mut whole = self.spend(1, 0, 1, at)?;
        let mut members = Map::new();
        let mut first_lines: HashMap<String, usize> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                return Ok((Value::Object(members), whole));
            }
            let key_at = position(span.start);
            let key = self.key(event, key_at)?;
            whole.bytes += self.spend(0, key.len(), 0, key_at)?.bytes;
            let duplicate_of = first_lines.get(&key).copied();
            if let Some(line) = duplicate_of {
                let message = format!("Duplicate key `{key}`; it is already on line {line}");
                self.path.push(key.clone());
                self.fault(key_at, message);
                self.path.pop();
            }
            let (event, span) = self.next()?;
            let (value, weight) = self.child(&key, event, span, Some(key_at), depth)?;
            whole.add(weight);
            if duplicate_of.is_none() {
                first_lines.insert(key.clone(), key_at.0);
                members.insert(key, value);
            }
        }
    }

    fn child(
        &mut self,
        name: &str,
        event: Event<'t>,
        span: Span,
        key: Option<Position>,
        depth: usize,
    ) -> Result<(Value, Weight), Stop> {
        let left = self.places.enter(name, depth);
        self.path.push(name.to_owned());
        let result = self.node(event, span, key, depth + 1);
        self.path.pop();
        self.places.leave(left);
        result
    }

    /// Keys are texts. `true`, `200` and the like are taken as written, so `true: step` routes as `"true": step` does.
    fn key(&mut self, event: Event<'t>, at: Position) -> Result<String, Stop> {
        match event {
            Event::Scalar(text, ScalarStyle::Plain, _, _) => match resolve(&text) {
                Ok(Value::Null) => Err(self.stop(at, "A key cannot be empty or null")),
                Ok(Value::Bool(value)) => Ok(value.to_string()),
                _ => Ok(text.into_owned()),
            },
            Event::Scalar(text, ..) => Ok(text.into_owned()),
            _ => Err(self.stop(at, "A key should be a plain name")),
        }
    }

    fn collection_tag(&mut self, tag: Option<&Tag>, name: &str, at: Position) -> Result<(), Stop> {
        match tag {
            Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == name) => {
                Err(self.unknown_tag(tag, at))
            }
            _ => Ok(()),
        }
    }

    fn unknown_tag(&mut self, tag: &Tag, at: Position) -> Stop {
        self.stop(at, format!("The tag `{tag}` has no meaning here"))
    }

    fn scalar(
        &mut self,
        text: Cow<'t, str>,
        style: ScalarStyle,
        tag: Option<&Tag>,
        at: Position,
    ) -> Result<Value, Stop> {
        match tag {
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => {
                return Ok(Value::String(text.into_owned()));
            }
            Some(tag) if tag.is_yaml_core_schema() => {
                let value = resolve(&text);
                let fits = matches!(
                    (tag.suffix.as_str(), &value),
                    ("int" | "float", Ok(Value::Number(_)))
                        | ("bool", Ok(Value::Bool(_)))
                        | ("null", Ok(Value::Null))
                );
                return match value {
                    Ok(value) if fits => Ok(value),
                    _ => Err(self.unknown_tag(tag, at)),
                };
            }
            Some(tag) => return Err(self.unknown_tag(tag, at)),
            None => {}
        }
        if style != ScalarStyle::Plain {
            return Ok(Value::String(text.into_owned()));
        }
        match resolve(&text) {
            Ok(value) => Ok(value),
            Err(message) => {
                self.fault(at, message);
                Ok(Value::Null)
            }
        }
    }

    /// How the text of a scalar stands in the file.
    fn layout(&self, text: &str, style: ScalarStyle, span: Span) -> Layout {
        let start = span.start;
        let quote = match style {
            ScalarStyle::Plain => 0,
            ScalarStyle::SingleQuoted | ScalarStyle::DoubleQuoted => 1,
            ScalarStyle::Literal => return self.block_layout(text, start.line()),
            ScalarStyle::Folded => return Layout::Opaque,
        };
        // A text that is shorter than what stands there was unescaped or unfolded.
        let verbatim =
            start.line() == span.end.line() && span.len() == text.chars().count() + 2 * quote;
        if verbatim {
            Layout::Inline((start.line(), start.col() + 1 + quote))
        } else {
            Layout::Opaque
        }
    }

    /// The first line that is not blank gives the indentation of all.
    fn block_layout(&self, text: &str, from_line: usize) -> Layout {
        let Some((blank_before, first)) =
            text.lines().enumerate().find(|(_, line)| !line.is_empty())
        else {
            return Layout::Opaque;
        };
        // The span begins at the content, but whether blank lines before it count is the scanner's affair.
        (from_line.saturating_sub(1)..)
            .take(blank_before + 2)
            .find_map(|index| {
                let indent = self.lines.get(index)?.strip_suffix(first)?;
                let first_line = (index + 1).saturating_sub(blank_before);
                let blank = indent.chars().all(|c| c == ' ');
                blank.then_some(Layout::Block((first_line, indent.len() + 1)))
            })
            .unwrap_or(Layout::Opaque)
    }
}

impl Weight {
    /// Takes in a child.
    fn add(&mut self, child: Self) {
        self.nodes += child.nodes;
        self.bytes += child.bytes;
        self.depth = self.depth.max(child.depth + 1);
    }
}

/// What a plain scalar means in YAML 1.2's core schema. `on`, `yes` and dates are texts.
fn resolve(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        _ => {}
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits =
        |text: &str, radix: u32| !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    let inexact = || format!("`{text}` is too large to be kept exactly as a number; quote it");
    if digits(unsigned, 10) {
        let text = text.strip_prefix('+').unwrap_or(text);
        return text
            .parse::<i64>()
            .map(Value::from)
            .or_else(|_| text.parse::<u64>().map(Value::from))
            .map_err(|_| inexact());
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(rest) = text.strip_prefix(prefix).filter(|rest| digits(rest, radix)) {
            return u64::from_str_radix(rest, radix)
                .map(Value::from)
                .map_err(|_| inexact());
        }
    }
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Err(format!(
            "`{text}` is no JSON number; quote it if it is a text"
        ));
    }
    if is_float(unsigned) {
        let number = text.parse().ok().and_then(Number::from_f64);
        return number.map(Value::Number).ok_or_else(inexact);
    }
    Ok(Value::String(text.to_owned()))
}

/// `( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn is_float(unsigned: &str) -> bool {
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let digits = |text: &str| text.chars().all(|c| c.is_ascii_digit());
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let mantissa_fits =
        digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty());
    let exponent_fits = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    mantissa_fits && exponent_fits
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(text: &str) -> Loaded {
        let (mut documents, faults) = load(text, None);
        assert_eq!(faults, [], "{text}");
        assert_eq!(documents.len(), 1, "{text}");
        documents.remove(0)
    }

    fn faults(text: &str) -> Vec<String> {
        load(text, None).1.iter().map(ToString::to_string).collect()
    }

    fn path(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn scalars_mean_what_the_core_schema_says() {
        for (text, value) in [
            ("on", json!("on")),
            ("yes", json!("yes")),
            ("No", json!("No")),
            ("2024-01-01", json!("2024-01-01")),
            ("1_000", json!("1_000")),
            ("~", json!(null)),
            ("True", json!(true)),
            ("010", json!(10)),
            ("-7", json!(-7)),
            ("+7", json!(7)),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            (
                "18446744073709551615",
                json!(18_446_744_073_709_551_615_u64),
            ),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            (".5", json!(0.5)),
            ("1.", json!(1.0)),
            (".", json!(".")),
            ("1e", json!("1e")),
            ("1.2.3", json!("1.2.3")),
            ("'5'", json!("5")),
            ("!!str 5", json!("5")),
            ("!!int 5", json!(5)),
            ("5m", json!("5m")),
        ] {
            assert_eq!(
                one(&format!("k: {text}")).body,
                json!({"k": value}),
                "{text}"
            );
        }
    }

    #[test]
    fn keys_are_texts() {
        let body = one("true: a\n\"false\": b\n200: c\nnull_: d").body;
        assert_eq!(
            body,
            json!({"true": "a", "false": "b", "200": "c", "null_": "d"})
        );
    }

    #[test]
    fn every_part_has_a_place() {
        let text = "kind: Workflow\nspec:\n  steps:\n    - id: a\n      with: { url: 'x y' }\n    - id: b\n  empty:\n";
        let source = one(text).source;
        for (at, expected) in [
            ("", (1, 1)),
            ("kind", (1, 7)),
            ("spec steps", (4, 5)),
            ("spec steps 0", (4, 7)),
            ("spec steps 0 with url", (5, 20)),
            ("spec steps 1 id", (6, 11)),
            ("spec steps 1 uses", (6, 7)),
            ("spec empty", (7, 3)),
        ] {
            assert_eq!(source.position(&path(at)), Some(expected), "{at}");
        }
        assert_eq!(
            source.name_position(&path("spec steps 0 with url")),
            Some((5, 15))
        );
    }

    #[test]
    fn a_character_of_a_text_is_found_where_the_text_stands_as_it_is() {
        let text = "plain: ab cd\nquoted: \"ä {{ x\"\nescaped: \"a\\tb\"\nblock: |\n    one\n\n    two {{\nlate: |2\n\n    in\n    x\n";
        let source = one(text).source;
        for (at, value, offset, expected) in [
            ("plain", "ab cd", 3, (1, 11)),
            ("quoted", "ä {{ x", 3, (2, 12)),
            ("escaped", "a\tb", 2, (3, 10)),
            ("block", "one\n\ntwo {{\n", 9, (7, 9)),
            ("late", "\n  in\n  x\n", 8, (11, 5)),
        ] {
            let found = source.offset_position(&path(at), value, offset);
            assert_eq!(found, Some(expected), "{at}");
        }
    }

    #[test]
    fn several_documents_stand_in_one_file_and_empty_ones_do_not_count() {
        let (documents, faults) = load(
            "---\n# nothing\n---\na: 1\n---\nb: 2\n...\n",
            Some("f.yaml"),
        );
        assert_eq!(faults, []);
        let bodies: Vec<_> = documents.iter().map(|document| &document.body).collect();
        assert_eq!(bodies, [&json!({"a": 1}), &json!({"b": 2})]);
        assert_eq!(documents[1].source.position(&path("b")), Some((6, 4)));
        assert!(load("", None).0.is_empty());
    }

    #[test]
    fn aliases_are_repeated_within_bounds() {
        assert_eq!(
            one("a: &x {b: [1]}\nc: *x\n").body,
            json!({"a": {"b": [1]}, "c": {"b": [1]}})
        );
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let before = format!("*a{}, ", level - 1).repeat(9);
            bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
        }
        assert!(faults(&bomb)[0].contains("values, aliases included"));
        let wide = format!("a: &a {}\nb: [{}]", "x".repeat(1 << 20), "*a, ".repeat(20));
        assert!(faults(&wide)[0].contains("values, aliases included"));
    }

    #[test]
    fn what_cannot_be_read_is_a_fault_with_its_place() {
        let deep = format!("a: {}", "[".repeat(80));
        for (text, expected) in [
            ("a: [1", "2:1"),
            (
                "a: 1\nb: 2\na: 3",
                "3:1: a: Duplicate key `a`; it is already on line 1",
            ),
            ("a: *x", "1:4: Invalid YAML"),
            ("a: &x [*x]", "1:8: a.0: An alias cannot stand inside"),
            (
                "a: !secret x",
                "1:4: a: The tag `!secret` has no meaning here",
            ),
            ("? [a]\n: b", "1:3: A key should be a plain name"),
            ("~: b", "1:1: A key cannot be empty or null"),
            ("a: .inf", "1:4: a: `.inf` is no JSON number"),
            (
                "a: 99999999999999999999",
                "1:4: a: `99999999999999999999` is too large",
            ),
            (deep.as_str(), "Nested deeper than 64 levels"),
        ] {
            let faults = faults(text);
            assert_eq!(faults.len(), 1, "{text}: {faults:?}");
            assert!(faults[0].contains(expected), "{text}: {faults:?}");
        }
    }
}
