//! Where the parts of a document stand in its file.

use std::collections::HashMap;

/// Where the parts of a document stand in its file. Empty for documents that came as JSON values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// The file's name as given.
    pub file: Option<String>,
    /// Line and column, from 1, by path joined with `/`. What is known beyond where a value begins stands under its
    /// path with a mark behind it, and is read by the methods below.
    pub positions: HashMap<String, Position>,
}

/// Line and column, from 1; columns count characters.
pub type Position = (usize, usize);

/// Behind a path: where the member's name stands.
const NAME: &str = "\0name";
/// Behind the path of a text that stands character by character on one line: where its first character does.
const INLINE: &str = "\0inline";
/// Behind the path of a text that stands line by line, all indented alike: where its first character does.
const BLOCK: &str = "\0block";

/// Where one value stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) value: Position,
    /// Where its name stands, for a member of a mapping.
    pub(super) name: Option<Position>,
    pub(super) layout: Layout,
}

/// How a text stands in the file: what is needed to find one of its characters there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// Folded, escaped, or no text at all: only its beginning is known.
    Opaque,
    /// Character by character on one line.
    Inline(Position),
    /// Line by line, all indented alike.
    Block(Position),
}

impl Source {
    /// A file of which nothing is known but its name.
    pub(super) fn in_file(file: Option<&str>) -> Self {
        Places::default().into_source(file)
    }

    /// Where the value at this path stands; where its closest parent does when there is no such value.
    pub fn position(&self, path: &[String]) -> Option<Position> {
        (0..=path.len())
            .rev()
            .find_map(|len| self.positions.get(&path[..len].join("/")).copied())
    }

    /// Where the name of the member at this path stands; its value, or its closest parent, when it has none.
    pub fn name_position(&self, path: &[String]) -> Option<Position> {
        self.marked(path, NAME).or_else(|| self.position(path))
    }

    /// Where byte `offset` of the text at this path stands, as closely as the way it is written allows.
    pub fn offset_position(&self, path: &[String], text: &str, offset: usize) -> Option<Position> {
        let before = text.get(..offset).unwrap_or_default();
        if let Some((line, column)) = self.marked(path, INLINE) {
            return Some((line, column + before.chars().count()));
        }
        if let Some((line, column)) = self.marked(path, BLOCK) {
            let last = before.rsplit('\n').next().unwrap_or_default();
            let lines = before.matches('\n').count();
            return Some((line + lines, column + last.chars().count()));
        }
        self.position(path)
    }

    fn marked(&self, path: &[String], mark: &str) -> Option<Position> {
        let key = path.join("/") + mark;
        self.positions.get(&key).copied()
    }
}

/// Collects the places of one document while it is read.
#[derive(Debug, Default)]
pub(super) struct Places {
    positions: HashMap<String, Position>,
    path: String,
}

/// What leads back from [`Places::enter`].
pub(super) struct Left(usize);

impl Places {
    pub(super) fn enter(&mut self, segment: &str, depth: usize) -> Left {
        let left = Left(self.path.len());
        if depth > 1 {
            self.path.push('/');
        }
        self.path.push_str(segment);
        left
    }

    pub(super) fn leave(&mut self, left: Left) {
        self.path.truncate(left.0);
    }

    pub(super) fn record(&mut self, place: Place) {
        if let Some(name) = place.name {
            self.positions.insert(format!("{}{NAME}", self.path), name);
        }
        let (mark, text) = match place.layout {
            Layout::Opaque => ("", place.value),
            Layout::Inline(text) => (INLINE, text),
            Layout::Block(text) => (BLOCK, text),
        };
        self.positions.insert(format!("{}{mark}", self.path), text);
        self.positions.insert(self.path.clone(), place.value);
    }

    pub(super) fn into_source(self, file: Option<&str>) -> Source {
        Source {
            file: file.map(str::to_owned),
            positions: self.positions,
        }
    }
}
