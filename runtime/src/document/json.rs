//! Places in JSON texts. YAML readers take most JSON, but not its surrogate pairs, its tabs and its long keys.

use serde_json::{Deserializer, Map, Value, de::StrRead};

use super::{
    DEPTH_MAX, Fault, NODES_MAX,
    source::{Layout, Place, Places, Position},
    yaml::Loaded,
};

/// Reads a JSON text. The one fault of syntax comes alone; duplicate keys come all at once.
pub(super) fn load(text: &str, file: Option<&str>) -> Result<Loaded, Vec<Fault>> {
    let mut scanner = Scanner {
        text,
        at: 0,
        line: 1,
        column: 1,
        counted: 0,
        file,
        places: Places::default(),
        path: Vec::new(),
        nodes: 0,
        faults: Vec::new(),
    };
    match scanner.document() {
        Ok(body) if scanner.faults.is_empty() => Ok(Loaded {
            body,
            source: scanner.places.into_source(file),
        }),
        _ => Err(scanner.faults),
    }
}

/// Reading cannot go on. The fault is recorded already.
struct Stop;

struct Scanner<'t> {
    text: &'t str,
    /// Byte offset of what comes next.
    at: usize,
    line: usize,
    /// Column of the byte `counted`: counting goes on from there, so a text of one long line costs no more.
    column: usize,
    counted: usize,
    file: Option<&'t str>,
    places: Places,
    path: Vec<String>,
    nodes: usize,
    faults: Vec<Fault>,
}

impl<'t> Scanner<'t> {
    fn document(&mut self) -> Result<Value, Stop> {
        let body = self.value(None, 1)?;
        match self.peek() {
            None => Ok(body),
            Some(_) => Err(self.stop("Invalid JSON: trailing characters")),
        }
    }

    fn position(&mut self) -> Position {
        self.column += self.text[self.counted..self.at].chars().count();
        self.counted = self.at;
        (self.line, self.column)
    }

    fn stop(&mut self, message: impl Into<String>) -> Stop {
        let at = self.position();
        self.fault(at, message);
        Stop
    }

    fn fault(&mut self, at: Position, message: impl Into<String>) {
        self.faults.push(Fault {
            file: self.file.map(str::to_owned),
            position: Some(at),
            path: self.path.clone(),
            message: message.into(),
            kind: "json_invalid",
        });
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        while let Some(&byte) = self.text.as_bytes().get(self.at) {
            match byte {
                b'\n' => {
                    self.at += 1;
                    (self.line, self.column, self.counted) = (self.line + 1, 1, self.at);
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                _ => return Some(byte),
            }
        }
        None
    }

    fn value(&mut self, key: Option<Position>, depth: usize) -> Result<Value, Stop> {
        let first = self.peek();
        self.nodes += 1;
        if depth > DEPTH_MAX {
            return Err(self.stop(format!("Nested deeper than {DEPTH_MAX} levels")));
        }
        if self.nodes > NODES_MAX {
            return Err(self.stop(format!("More than {NODES_MAX} values")));
        }
        let value = self.position();
        let mut layout = Layout::Opaque;
        let read = match first {
            Some(b'{') => self.object(depth)?,
            Some(b'[') => self.array(depth)?,
            _ => {
                let start = self.at;
                let scalar = self.scalar()?;
                // A text as long as what stands between the quotes was not escaped.
                if scalar
                    .as_str()
                    .is_some_and(|text| text.len() + 2 == self.at - start)
                {
                    layout = Layout::Inline((value.0, value.1 + 1));
                }
                scalar
            }
        };
        self.places.record(Place {
            value,
            name: key,
            layout,
        });
        Ok(read)
    }

    /// A text, a number or a word, as serde_json reads it.
    fn scalar(&mut self) -> Result<Value, Stop> {
        let rest = &self.text[self.at..];
        let mut values = Deserializer::new(StrRead::new(rest)).into_iter::<Value>();
        match values.next() {
            Some(Ok(value)) => {
                self.at += values.byte_offset();
                Ok(value)
            }
            Some(Err(error)) => {
                let text = error.to_string();
                let message = text.split(" at line ").next().unwrap_or_default();
                Err(self.stop(format!("Invalid JSON: {message}")))
            }
            None => Err(self.stop("Invalid JSON: unexpected end")),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, Stop> {
        self.at += 1;
        let mut elements = Vec::new();
        if self.closes(b']') {
            return Ok(Value::Array(elements));
        }
        loop {
            let index = elements.len().to_string();
            elements.push(self.child(&index, None, depth)?);
            if self.ends(b']')? {
                return Ok(Value::Array(elements));
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, Stop> {
        self.at += 1;
        let mut members = Map::new();
        if self.closes(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.stop("Invalid JSON: expected a key in double quotes"));
            }
            let key_at = self.position();
            let Value::String(key) = self.scalar()? else {
                return Err(self.stop("Invalid JSON: expected a key in double quotes"));
            };
            if !self.closes(b':') {
                return Err(self.stop("Invalid JSON: expected `:`"));
            }
            let value = self.child(&key, Some(key_at), depth)?;
            if members.contains_key(&key) {
                self.path.push(key.clone());
                self.fault(key_at, format!("Duplicate key `{key}`"));
                self.path.pop();
            } else {
                members.insert(key, value);
            }
            if self.ends(b'}')? {
                return Ok(Value::Object(members));
            }
        }
    }

    fn child(&mut self, name: &str, key: Option<Position>, depth: usize) -> Result<Value, Stop> {
        let left = self.places.enter(name, depth);
        self.path.push(name.to_owned());
        let value = self.value(key, depth + 1);
        self.path.pop();
        self.places.leave(left);
        value
    }

    /// Takes this byte if it comes next.
    fn closes(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    /// After an element: whether this bracket closed the list, or a comma promises more.
    fn ends(&mut self, bracket: u8) -> Result<bool, Stop> {
        if self.closes(bracket) {
            return Ok(true);
        }
        if self.closes(b',') {
            return Ok(false);
        }
        let expected = char::from(bracket);
        Err(self.stop(format!("Invalid JSON: expected `,` or `{expected}`")))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn path(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn values_and_places_are_read() {
        let text = "{\n\t\"a\": [1, -2.5e3, {\"b\\n\": \"\\ud83d\\ude00\"}],\n  \"ä\": \"x {{ y\", \"e\": {}, \"f\": [], \"n\": null\n}\n";
        let loaded = load(text, None).ok().expect("it is valid");
        assert_eq!(
            loaded.body,
            json!({"a": [1, -2500.0, {"b\n": "😀"}], "ä": "x {{ y", "e": {}, "f": [], "n": null})
        );
        assert_eq!(loaded.source.position(&path("a 1")), Some((2, 11)));
        assert_eq!(loaded.source.position(&path("ä")), Some((3, 8)));
        assert_eq!(loaded.source.name_position(&path("e")), Some((3, 18)));
        assert_eq!(
            loaded.source.offset_position(&path("ä"), "x {{ y", 2),
            Some((3, 11))
        );
    }

    #[test]
    fn what_cannot_be_read_is_a_fault_with_its_place() {
        let deep = "[".repeat(100);
        for (text, expected) in [
            ("{\"a\": 1,}", "1:9: Invalid JSON: expected a key"),
            ("{\"a\" 1}", "1:6: Invalid JSON: expected `:`"),
            ("{\"a\": tru}", "1:7: a: Invalid JSON: expected ident"),
            ("{\"a\": 1", "1:8: Invalid JSON: expected `,` or `}`"),
            ("{\"a\": ", "1:7: a: Invalid JSON"),
            ("{\n\"a\": 1, \"a\": 2}", "2:9: a: Duplicate key `a`"),
            ("{} x", "1:4: Invalid JSON: trailing characters"),
            (deep.as_str(), "Nested deeper than 64 levels"),
        ] {
            let faults = load(text, None).err().expect(text);
            assert_eq!(faults.len(), 1, "{text}");
            let fault = faults[0].to_string();
            assert!(fault.contains(expected), "{text}: {fault}");
        }
    }
}
