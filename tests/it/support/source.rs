//! Reads the production source: its modules, the imports of each, and its string literals.
//!
//! Skips items under `#[cfg(test)]`, modules named `tests` or `testing`, comments, documentation and
//! attributes.
//!
//! Works on tokens: a parser such as `syn` does not look into macro calls, where imports and literals occur
//! as well. The lexer is here because a dependency of tests on `proc-macro2` would change how procedural
//! macros are built.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Name by which the binary refers to the library.
const LIBRARY: &str = "leasemux";

/// Names of modules that only tests use.
const OF_TESTS: [&str; 2] = ["tests", "testing"];

/// Keywords of items, and whether the item's first brace group ends it. `const fn` comes under `fn`.
const KEYWORDS: [(&str, bool); 12] = [
    ("fn", true),
    ("impl", true),
    ("struct", true),
    ("enum", true),
    ("trait", true),
    ("mod", true),
    ("macro_rules", true),
    ("use", false),
    ("static", false),
    ("type", false),
    ("let", false),
    ("const", false),
];

/// Methods of formatters: their arguments are names of types, or words for people.
const NAMING: [&str; 3] = ["debug_struct", "debug_tuple", "write_str"];

/// Bounds the re-exports followed from a name to its item; without it, a cycle of re-exports would not end.
const REEXPORTS_MAX: usize = 16;

/// Module names from the crate root down. The binary is the module `main`.
pub(crate) type ModulePath = Vec<String>;

/// The modules of the library and of the binary.
pub(crate) struct Source {
    modules: BTreeMap<ModulePath, Module>,
}

/// One module.
#[derive(Default)]
struct Module {
    /// Relative to the package.
    file: String,
    children: BTreeSet<String>,
    /// For each name that a `use` brings in, the path that it stands for.
    imports: BTreeMap<String, ModulePath>,
    /// Paths of at least two names, and their lines.
    paths: Vec<(ModulePath, usize)>,
    literals: Vec<String>,
}

/// An import of one module by another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Use {
    pub(crate) from: ModulePath,
    pub(crate) to: ModulePath,
    /// `src/edge/audit.rs:12`.
    pub(crate) place: String,
    /// The path as written.
    pub(crate) written: String,
}

impl Source {
    /// Reads `src/lib.rs`, `src/main.rs` and the modules that they declare.
    pub(crate) fn read() -> Self {
        Self::of(Path::new(env!("CARGO_MANIFEST_DIR")))
    }

    fn of(package: &Path) -> Self {
        let mut source = Self { modules: BTreeMap::new() };
        source.file(package, "src/lib.rs", Path::new("src"), Vec::new());
        source.file(package, "src/main.rs", Path::new("src"), vec!["main".to_owned()]);
        source
    }

    /// Reads the file of the module `path`. The files of its child modules are in `dir`.
    fn file(&mut self, package: &Path, file: &str, dir: &Path, path: ModulePath) {
        let text = fs::read_to_string(package.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let tokens = Lexer::new(&text).tokens();
        let mut declared = Vec::new();
        self.module(file, path.clone(), &tokens, &mut declared);
        for child in declared {
            let below = child[path.len()..].iter().fold(dir.to_owned(), |dir, name| dir.join(name));
            let inside = [below.with_extension("rs"), below.join("mod.rs")];
            let found = inside.into_iter().find(|file| package.join(file).exists());
            let found: PathBuf =
                found.unwrap_or_else(|| panic!("{file} declares {child:?}, which is not there"));
            self.file(package, found.to_str().unwrap(), &below, child);
        }
    }

    /// Adds the module `path`. Adds its child modules that have their own files to `declared`.
    fn module(&mut self, file: &str, path: ModulePath, tokens: &[Token], declared: &mut Vec<ModulePath>) {
        let mut module = Module { file: file.to_owned(), ..Module::default() };
        let mut inline = Vec::new();
        scan(tokens, &mut module, &mut inline);
        for name in &module.children {
            let mut child = path.clone();
            child.push(name.clone());
            match inline.iter().find(|(inline, _)| inline == name) {
                Some((_, body)) => self.module(file, child, body, declared),
                None => declared.push(child),
            }
        }
        self.modules.insert(path, module);
    }

    /// Returns the child modules of `path`. Those of the empty path include `main`.
    pub(crate) fn children(&self, path: &[String]) -> BTreeSet<String> {
        let main = path.is_empty().then(|| "main".to_owned());
        self.modules[path].children.iter().cloned().chain(main).collect()
    }

    /// Returns the string literals of all modules. Escapes stay as they are written.
    pub(crate) fn literals(&self) -> impl Iterator<Item = &str> {
        self.modules.values().flat_map(|module| &module.literals).map(String::as_str)
    }

    /// Returns all imports between modules of which neither contains the other.
    pub(crate) fn uses(&self) -> Vec<Use> {
        let mut uses = Vec::new();
        for (from, module) in &self.modules {
            for (path, line) in &module.paths {
                let Some(to) = self.resolve(from, path, REEXPORTS_MAX) else { continue };
                // A path that begins with an imported name repeats the import, unless it leads on to another
                // module.
                let import = module.imports.get(&path[0]).filter(|import| *import != path);
                let is_counted = import
                    .is_some_and(|import| self.resolve(from, import, REEXPORTS_MAX).as_ref() == Some(&to));
                if from.starts_with(&to) || to.starts_with(from) || is_counted {
                    continue;
                }
                let place = format!("{}:{line}", module.file);
                uses.push(Use { from: from.clone(), to, place, written: path.join("::") });
            }
        }
        uses.sort();
        uses.dedup();
        uses
    }

    /// Returns the module that defines the item with this path, written in the module `from`; `None` if it is
    /// in another crate.
    fn resolve(&self, from: &[String], path: &[String], depth: usize) -> Option<ModulePath> {
        let depth = depth.checked_sub(1)?;
        let (first, mut rest) = path.split_first()?;
        let in_binary = from.first().is_some_and(|first| first == "main");
        let mut at = match first.as_str() {
            "crate" if in_binary => vec!["main".to_owned()],
            "crate" => Vec::new(),
            LIBRARY if in_binary => Vec::new(),
            "self" => from.to_vec(),
            "super" => from.split_last()?.1.to_vec(),
            name if self.modules[from].children.contains(name) => [from, &[name.to_owned()]].concat(),
            name => {
                let import = self.modules[from].imports.get(name)?;
                // A crate that is imported under its own name.
                if import.first() == Some(first) {
                    return None;
                }
                let whole = [import, rest].concat();
                return self.resolve(from, &whole, depth);
            }
        };
        while let Some((name, behind)) = rest.split_first() {
            let module = &self.modules[&at];
            if name == "super" {
                at.pop()?;
            } else if module.children.contains(name) {
                at.push(name.clone());
            } else if let Some(import) = module.imports.get(name) {
                // A re-export: the item is defined elsewhere.
                let whole = [import, behind].concat();
                return self.resolve(&at, &whole, depth).or(Some(at));
            } else {
                break;
            }
            rest = behind;
        }
        Some(at)
    }
}

/// A token, or a group of tokens in brackets.
enum Token {
    Ident(String, usize),
    Punct(char),
    /// The text of a string literal without a prefix; empty for other literals.
    Literal(String),
    Group(char, Vec<Token>),
}

/// Splits source text into tokens. Takes for granted that it compiles.
struct Lexer<'a> {
    rest: &'a str,
    line: usize,
}

impl<'a> Lexer<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text, line: 1 }
    }

    /// Returns the next `bytes` bytes and moves behind them.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at(bytes);
        self.line += taken.matches('\n').count();
        self.rest = rest;
        taken
    }

    /// Returns the tokens up to the closing bracket of the present group, or to the end.
    fn tokens(&mut self) -> Vec<Token> {
        let mut tokens = Vec::new();
        while let Some(first) = self.rest.chars().next() {
            if first.is_whitespace() {
                self.take(first.len_utf8());
            } else if self.rest.starts_with("//") {
                self.take(self.rest.find('\n').unwrap_or(self.rest.len()));
            } else if self.rest.starts_with("/*") {
                self.block_comment();
            } else if let Some(hashes) = self.raw_string() {
                let end = format!("\"{}", "#".repeat(hashes));
                let begin = self.rest.find('"').unwrap_or_default() + 1;
                let length = self.rest[begin..].find(&end).unwrap_or_default();
                self.take(begin + length + end.len());
                tokens.push(Token::Literal(String::new()));
            } else if first == '"' {
                let length = quoted(self.rest, '"');
                let text = self.take(length);
                tokens.push(Token::Literal(text[1..length - 1].to_owned()));
            } else if first == '\'' {
                self.quote(&mut tokens);
            } else if first.is_alphanumeric() || first == '_' {
                let length =
                    self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
                let line = self.line;
                let word = self.take(length);
                match (word, self.rest.chars().next()) {
                    // The prefix of a string, a byte or a raw name.
                    ("b" | "c", Some('"' | '\'')) => {}
                    ("r", Some('#')) => drop(self.take(1)),
                    _ if first.is_ascii_digit() => tokens.push(Token::Literal(String::new())),
                    _ => tokens.push(Token::Ident(word.to_owned(), line)),
                }
            } else {
                self.take(first.len_utf8());
                match first {
                    '(' | '[' | '{' => tokens.push(Token::Group(first, self.tokens())),
                    ')' | ']' | '}' => break,
                    _ => tokens.push(Token::Punct(first)),
                }
            }
        }
        tokens
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        loop {
            let step = match self.rest.as_bytes() {
                [b'/', b'*', ..] => {
                    depth += 1;
                    2
                }
                [b'*', b'/', ..] => {
                    depth -= 1;
                    2
                }
                _ => self.rest.chars().next().map_or(0, char::len_utf8),
            };
            self.take(step);
            if depth == 0 || step == 0 {
                return;
            }
        }
    }

    /// Returns the number of `#` if a raw string begins here.
    fn raw_string(&self) -> Option<usize> {
        let text = self.rest.strip_prefix(['b', 'c']).unwrap_or(self.rest).strip_prefix('r')?;
        let hashes = text.find(|c| c != '#')?;
        text[hashes..].starts_with('"').then_some(hashes)
    }

    /// Reads a character literal or a lifetime.
    fn quote(&mut self, tokens: &mut Vec<Token>) {
        let mut behind = self.rest.chars().skip(1);
        let (first, second) = (behind.next(), behind.next());
        if first == Some('\\') || second == Some('\'') {
            self.take(quoted(self.rest, '\''));
            tokens.push(Token::Literal(String::new()));
        } else {
            // The name of the lifetime is a word like any other.
            self.take(1);
        }
    }
}

/// Returns the length of a literal between `quote` characters, both included.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// Reads the tokens of a module, or of a group in it. Adds the bodies of inline modules to `inline`.
fn scan<'a>(tokens: &'a [Token], module: &mut Module, inline: &mut Vec<(&'a str, &'a [Token])>) {
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        match token {
            Token::Punct('#') => {
                let (behind, is_of_tests) = attribute(tokens, at);
                at = if is_of_tests { item_end(tokens, behind) } else { behind };
                continue;
            }
            Token::Ident(word, _)
                if word == "mod" && matches!(tokens.get(at + 1), Some(Token::Ident(..))) =>
            {
                if let Some(Token::Ident(name, _)) = tokens.get(at + 1)
                    && !OF_TESTS.contains(&name.as_str())
                {
                    module.children.insert(name.clone());
                    if let Some(Token::Group(_, body)) = tokens.get(at + 2) {
                        inline.push((name, body));
                    }
                }
                at += 3;
                continue;
            }
            // Not `use<'a>` in a signature.
            Token::Ident(word, _) if word == "use" && !is_punct(tokens, at + 1, '<') => {
                let end = (at..tokens.len()).find(|at| is_punct(tokens, *at, ';')).unwrap_or(tokens.len());
                imports(&tokens[at + 1..end], &[], module);
                at = end;
                continue;
            }
            Token::Ident(_, line) => {
                let (path, behind) = path(tokens, at);
                let is_inner = at >= 2 && is_punct(tokens, at - 1, ':') && is_punct(tokens, at - 2, ':');
                if path.len() > 1 && !is_inner {
                    module.paths.push((path, *line));
                }
                at = behind;
                continue;
            }
            Token::Group(..) if at > 0 && NAMING.iter().any(|call| is_ident(tokens, at - 1, call)) => {}
            Token::Group(_, inner) => scan(inner, module, inline),
            Token::Literal(text) => module.literals.push(text.clone()),
            Token::Punct(_) => {}
        }
        at += 1;
    }
}

/// Returns the index after the attribute at `at`, and whether it restricts its item to tests.
fn attribute(tokens: &[Token], at: usize) -> (usize, bool) {
    let begin = at + 1 + usize::from(is_punct(tokens, at + 1, '!'));
    let Some(Token::Group('[', attribute)) = tokens.get(begin) else { return (at + 1, false) };
    let of_tests = match attribute.as_slice() {
        [Token::Ident(name, _), Token::Group(_, condition)] if name == "cfg" => is_for_tests(condition),
        _ => false,
    };
    (begin + 1, of_tests)
}

/// Whether a `cfg` condition names tests, and not as an exception.
fn is_for_tests(condition: &[Token]) -> bool {
    condition.iter().enumerate().any(|(at, token)| match token {
        Token::Ident(name, _) => name == "test",
        Token::Literal(text) => text == "test-support",
        Token::Group(_, inner) => (at == 0 || !is_ident(condition, at - 1, "not")) && is_for_tests(inner),
        Token::Punct(_) => false,
    })
}

/// Returns the index after the item, field, arm or statement at `at`.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    let keyword = (at..tokens.len()).find_map(|at| match &tokens[at] {
        // `const fn`.
        Token::Ident(word, _) if word == "const" && is_ident(tokens, at + 1, "fn") => None,
        Token::Ident(word, _) => KEYWORDS.iter().find(|(keyword, _)| word == keyword),
        _ => None,
    });
    while let Some(token) = tokens.get(at) {
        at += 1;
        let is_end = match token {
            Token::Group(bracket, _) => *bracket == '{' && keyword.is_none_or(|(_, ends)| *ends),
            Token::Punct(punct) => *punct == ';' || (*punct == ',' && keyword.is_none()),
            _ => false,
        };
        if is_end {
            break;
        }
    }
    at
}

/// Adds the imports of a `use` declaration, or of a brace group in it after the path `prefix`.
fn imports(tokens: &[Token], prefix: &[String], module: &mut Module) {
    for tree in tokens.split(|token| matches!(token, Token::Punct(','))) {
        let mut path = prefix.to_vec();
        let (mut at, mut line, mut name) = (0, 0, None);
        while let Some(token) = tree.get(at) {
            match token {
                Token::Ident(word, _) if word == "as" => {
                    if let Some(Token::Ident(alias, _)) = tree.get(at + 1) {
                        name = Some(alias.clone());
                    }
                    at += 1;
                }
                Token::Ident(word, at) => {
                    line = *at;
                    // `use super::ring::{self, Ring}`.
                    if word != "self" || path.is_empty() {
                        path.push(word.clone());
                    }
                }
                Token::Group(_, inner) => {
                    imports(inner, &path, module);
                    path.clear();
                }
                Token::Punct(_) | Token::Literal(_) => {}
            }
            at += 1;
        }
        if path.len() > 1 {
            let name = name.or_else(|| path.last().cloned()).unwrap_or_default();
            module.imports.insert(name, path.clone());
            module.paths.push((path, line));
        }
    }
}

/// Returns the path that begins at `at`, and the index after it.
fn path(tokens: &[Token], mut at: usize) -> (ModulePath, usize) {
    let mut path = Vec::new();
    while let Some(Token::Ident(name, _)) = tokens.get(at) {
        path.push(name.clone());
        at += 1;
        if !(is_punct(tokens, at, ':')
            && is_punct(tokens, at + 1, ':')
            && matches!(tokens.get(at + 2), Some(Token::Ident(..))))
        {
            break;
        }
        at += 2;
    }
    (path, at)
}

fn is_punct(tokens: &[Token], at: usize, wanted: char) -> bool {
    matches!(tokens.get(at), Some(Token::Punct(found)) if *found == wanted)
}

fn is_ident(tokens: &[Token], at: usize, wanted: &str) -> bool {
    matches!(tokens.get(at), Some(Token::Ident(found, _)) if found == wanted)
}

#[test]
fn imports_of_every_form_are_found() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("src/a")).unwrap();
    for (file, text) in [
        ("lib.rs", "mod a; mod b; mod c { pub use super::b::Item; }"),
        ("main.rs", "use leasemux::a; fn main() { leasemux::b::run(); }"),
        (
            "a.rs",
            "#[cfg(test)]\nmod tests; /* a /* nested */ b */\nmod x;\nmod y;\nuse crate::{b as other, c::Item};\n#[cfg(test)]\nuse crate::none::None;\n\
             fn f<'a>(_: &'a str) { let _ = (\"LITERAL\", '\"', '\\'', b\"x\\\"\", r#\"c::d\"#);  other::g(); std::fs::read(x::h()); }\n#[cfg(test)]\nfn t() { crate::none::f() }",
        ),
        ("a/x.rs", "//! crate::c\nfn h() { super::y::i(crate::a::X) }"),
        ("a/y.rs", "pub(in crate::a) fn i() { vec![self::super::x::h()] }"),
        ("b.rs", ""),
    ] {
        fs::write(dir.path().join("src").join(file), text).unwrap();
    }
    let source = Source::of(dir.path());
    let uses = source.uses();
    let found: Vec<_> = uses
        .iter()
        .map(|one| format!("{} {} {}", one.from.join("::"), one.to.join("::"), one.place))
        .collect();
    let expected = [
        "a b src/a.rs:5",
        "a b src/a.rs:5",
        "a::x a::y src/a/x.rs:2",
        "a::y a::x src/a/y.rs:1",
        "c b src/lib.rs:1",
        "main a src/main.rs:1",
        "main b src/main.rs:1",
    ];
    assert_eq!(found, expected);
    assert_eq!(source.literals().collect::<Vec<_>>(), ["LITERAL", "", "", "x\\\"", ""]);
}
