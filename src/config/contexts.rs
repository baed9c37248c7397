//! The file of contexts: named sets of a gateway, credentials and a lease.
//!
//! Its values are the defaults of the commands for tenants. As with the file of `serve`, they are text until
//! the resolver parses them, so an invalid one is reported with file and line when it is used.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;
use toml::Spanned;

use super::file::{File, line_of};
use super::file_lock::FileLock;
use crate::sys::read::read_bounded;

/// Directory and name of the file, below the user's directory for configuration.
const FILE: &str = "leasemux/contexts.toml";

/// Extension of the lock file beside it.
const LOCK_EXTENSION: &str = "lock";

/// Maximum size of the file: about a thousand contexts. A larger file is the wrong one.
const FILE_MAX_BYTES: u64 = 512 * 1024;

/// Mode of a directory that is created for the file. The file itself has mode 0600.
const DIR_MODE: u32 = 0o700;

/// Maximum length of a name, in bytes.
const NAME_MAX_BYTES: usize = 63;

/// All contexts, as the file holds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contexts {
    path: PathBuf,
    /// The file as it was read, for the lines of its values.
    text: String,
    content: Content,
}

/// Content of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    /// Name of the context that is used if no other one is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<Spanned<String>>,
    #[serde(default)]
    contexts: BTreeMap<Spanned<String>, Context>,
}

/// Values of one context, as a command line would hold them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Context {
    #[serde(skip_serializing_if = "Option::is_none")]
    gateway: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<Spanned<String>>,
    /// Path of a file with a token. A token itself is never stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca: Option<Spanned<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease: Option<Spanned<String>>,
}

/// New values of a context. `None` keeps a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContextChange {
    /// URL of the gateway.
    pub gateway: Option<String>,
    /// Directory of the identity.
    pub identity: Option<PathBuf>,
    /// File with a token.
    pub token_file: Option<PathBuf>,
    /// File with the gateway's certificate.
    pub ca: Option<PathBuf>,
    /// The lease.
    pub lease: Option<String>,
}

/// Why the file of contexts cannot be used. The text names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContextsError {
    /// There is no place for the file.
    #[error("there is no place for contexts: set HOME or XDG_CONFIG_HOME")]
    NoPlace,
    /// The file cannot be read or written.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: io::Error,
    },
    /// The file is not valid.
    #[error("{}{}: {reason}", path.display(), line.map(|line| format!(", line {line}")).unwrap_or_default())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The line of the error, counted from 1, if it is known.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
    /// There is no context of this name.
    #[error("there is no context {name:?} in {}{}", path.display(), known(names))]
    Unknown {
        /// The name.
        name: String,
        /// The file.
        path: PathBuf,
        /// The names of all contexts.
        names: Vec<String>,
    },
    /// A name that no context can have.
    #[error(
        "{0:?} is not a name of a context: use letters, digits, '-', '_' and '.', at most {NAME_MAX_BYTES}"
    )]
    Name(String),
}

// === impl Contexts ===

impl Contexts {
    /// Reads the file of this user. A missing file has no contexts.
    ///
    /// # Errors
    /// If there is no place for the file, or it cannot be read or is invalid.
    pub fn read() -> Result<Self, ContextsError> {
        Self::read_from(path().ok_or(ContextsError::NoPlace)?)
    }

    /// Changes the file of this user. Changes by other processes wait meanwhile. If `change` fails, nothing
    /// is written.
    ///
    /// # Errors
    /// As [`Contexts::read`]; those of `change`; if the file cannot be written or would be too large.
    pub fn update<T>(change: impl Fn(&mut Self) -> Result<T, ContextsError>) -> Result<T, ContextsError> {
        Self::update_at(&path().ok_or(ContextsError::NoPlace)?, change)
    }

    fn update_at<T>(
        path: &Path,
        change: impl Fn(&mut Self) -> Result<T, ContextsError>,
    ) -> Result<T, ContextsError> {
        // A change that is not possible does not create a directory.
        change(&mut Self::read_from(path.to_owned())?)?;
        // A link to a file elsewhere stays one.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let failed = |path: &Path, error| ContextsError::File { path: path.to_owned(), error };
        let dir = target.parent().unwrap_or(Path::new("."));
        let created = DirBuilder::new().recursive(true).mode(DIR_MODE).create(dir);
        created.map_err(|error| failed(&target, error))?;
        let lock = target.with_extension(LOCK_EXTENSION);
        let _lock = FileLock::acquire(&lock).map_err(|error| failed(&lock, error))?;
        let mut contexts = Self::read_from(path.to_owned())?;
        let result = change(&mut contexts)?;
        contexts.save(&target).map_err(|error| failed(&target, error))?;
        Ok(result)
    }

    fn read_from(path: PathBuf) -> Result<Self, ContextsError> {
        let bytes = match read_bounded(&path, FILE_MAX_BYTES) {
            Err(error) if is_absent(&path, &error) => Vec::new(),
            Err(error) => return Err(ContextsError::File { path, error }),
            Ok(bytes) => bytes,
        };
        let Ok(text) = String::from_utf8(bytes) else {
            return Err(ContextsError::Invalid {
                path,
                line: None,
                reason: "is not text in UTF-8".to_owned(),
            });
        };
        let content: Content = match toml::from_str(&text) {
            Ok(content) => content,
            Err(error) => {
                let line = error.span().map(|span| line_of(&text, span.start));
                let reason = error.message().lines().collect::<Vec<_>>().join(", ");
                return Err(ContextsError::Invalid { path, line, reason });
            }
        };
        // They are printed, and inserted by shells into the line that is being typed.
        if let Some(invalid) = content.contexts.keys().find(|name| !is_name(name.get_ref())) {
            let line = Some(line_of(&text, invalid.span().start));
            let reason = ContextsError::Name(invalid.get_ref().clone()).to_string();
            return Err(ContextsError::Invalid { path, line, reason });
        }
        Ok(Self { path, text, content })
    }

    /// Returns the names in order, each with its context.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Context)> {
        self.content.contexts.iter().map(|(name, context)| (name.get_ref().as_str(), context))
    }

    /// Returns the name of the current context, if one is set.
    pub fn current(&self) -> Option<&str> {
        self.content.current.as_ref().map(|name| name.get_ref().as_str())
    }

    /// Returns a context; without a name, the current one.
    ///
    /// # Errors
    /// [`ContextsError::Unknown`], or [`ContextsError::Invalid`] if the current context does not exist or
    /// none is current.
    pub fn get(&self, name: Option<&str>) -> Result<(&str, &Context), ContextsError> {
        let (wanted, line) = match (name, &self.content.current) {
            (Some(name), _) => (name, None),
            (None, Some(current)) => {
                (current.get_ref().as_str(), Some(line_of(&self.text, current.span().start)))
            }
            (None, None) => {
                return Err(
                    self.invalid(None, "no context is current; choose one with 'leasemux context use'")
                );
            }
        };
        match self.content.contexts.get_key_value(wanted) {
            Some((name, context)) => Ok((name.get_ref(), context)),
            None if name.is_some() => Err(self.unknown(wanted)),
            None => {
                let reason = format!(
                    "the current context {wanted:?} does not exist; choose one with 'leasemux context use'"
                );
                Err(self.invalid(line, &reason))
            }
        }
    }

    /// Changes a context, or creates it. If it is the only one, it becomes the current one. Returns whether
    /// it is.
    ///
    /// # Errors
    /// [`ContextsError::Name`].
    pub fn set(&mut self, name: &str, change: ContextChange) -> Result<bool, ContextsError> {
        if !is_name(name) {
            return Err(ContextsError::Name(name.to_owned()));
        }
        let context = self.content.contexts.entry(unplaced(name.to_owned())).or_default();
        let put = |slot: &mut Option<Spanned<String>>, value: Option<String>| {
            if let Some(value) = value {
                *slot = Some(unplaced(value));
            }
        };
        // A gateway takes one kind of credentials.
        if change.identity.is_some() {
            context.token_file = None;
        }
        if change.token_file.is_some() {
            context.identity = None;
        }
        put(&mut context.gateway, change.gateway);
        put(&mut context.lease, change.lease);
        for (slot, path) in [
            (&mut context.identity, change.identity),
            (&mut context.token_file, change.token_file),
            (&mut context.ca, change.ca),
        ] {
            let absolute = path.map(|path| std::path::absolute(&path).unwrap_or(path));
            put(slot, absolute.map(|path| path.to_string_lossy().into_owned()));
        }
        if self.content.contexts.len() == 1 {
            self.content.current = Some(unplaced(name.to_owned()));
        }
        Ok(self.current() == Some(name))
    }

    /// Makes a context the current one.
    ///
    /// # Errors
    /// [`ContextsError::Unknown`].
    pub fn choose(&mut self, name: &str) -> Result<(), ContextsError> {
        self.get(Some(name))?;
        self.content.current = Some(unplaced(name.to_owned()));
        Ok(())
    }

    /// Deletes a context. If it is the current one, none is afterwards.
    ///
    /// # Errors
    /// [`ContextsError::Unknown`].
    pub fn delete(&mut self, name: &str) -> Result<(), ContextsError> {
        if self.content.contexts.remove(name).is_none() {
            return Err(self.unknown(name));
        }
        if self.current() == Some(name) {
            self.content.current = None;
        }
        Ok(())
    }

    /// Replaces the file. Other programs see the old or the new one.
    fn save(&self, path: &Path) -> io::Result<()> {
        let text = toml::to_string(&self.content).map_err(io::Error::other)?;
        if text.len() as u64 > FILE_MAX_BYTES {
            return Err(io::Error::other(format!("would be larger than {FILE_MAX_BYTES} bytes")));
        }
        // Only the user can read it.
        let mut file = NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    }

    /// Returns the values of a context as those of a configuration file, by the ids of the flags.
    pub(super) fn file_of(&self, context: &Context) -> File {
        let token =
            context.token_file.as_ref().map(|path| (format!("@{}", path.get_ref()), path.span().start));
        let value = |value: &Option<Spanned<String>>| {
            value.as_ref().map(|value| (value.get_ref().clone(), value.span().start))
        };
        let values = [
            ("gateway", value(&context.gateway)),
            ("identity", value(&context.identity)),
            ("token", token),
            ("ca", value(&context.ca)),
            ("lease", value(&context.lease)),
        ];
        let values = values.into_iter().filter_map(|(id, value)| {
            let (text, at) = value?;
            Some((id, text, line_of(&self.text, at)))
        });
        File::of_context(&self.path.to_string_lossy(), values)
    }

    fn unknown(&self, name: &str) -> ContextsError {
        let names = self.content.contexts.keys().map(|name| name.get_ref().clone()).collect();
        ContextsError::Unknown { name: name.to_owned(), path: self.path.clone(), names }
    }

    fn invalid(&self, line: Option<usize>, reason: &str) -> ContextsError {
        ContextsError::Invalid { path: self.path.clone(), line, reason: reason.to_owned() }
    }
}

// === impl Context ===

impl Context {
    /// Returns the gateway, if the context has one.
    pub fn gateway(&self) -> Option<&str> {
        self.gateway.as_ref().map(|value| value.get_ref().as_str())
    }

    /// Returns the lease, if the context has one.
    pub fn lease(&self) -> Option<&str> {
        self.lease.as_ref().map(|value| value.get_ref().as_str())
    }

    /// Returns the path of the identity, or `@` and that of a token's file.
    pub fn credentials(&self) -> Option<String> {
        let identity = self.identity.as_ref().map(|path| path.get_ref().clone());
        identity.or_else(|| self.token_file.as_ref().map(|path| format!("@{}", path.get_ref())))
    }

    /// Returns the context as the file holds it.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }
}

/// Parses the name of a context.
pub(super) fn name(text: &str) -> Result<String, String> {
    if is_name(text) {
        return Ok(text.to_owned());
    }
    Err(format!("must be a name of at most {NAME_MAX_BYTES} letters, digits, '-', '_' and '.'"))
}

fn is_name(text: &str) -> bool {
    (1..=NAME_MAX_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// Returns the path of the file. A relative `XDG_CONFIG_HOME` is ignored, as its specification says.
fn path() -> Option<PathBuf> {
    // Unit tests do not depend on the contexts of the person who runs them.
    if cfg!(test) {
        return None;
    }
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let dir = absolute("XDG_CONFIG_HOME").or_else(|| Some(absolute("HOME")?.join(".config")))?;
    Some(dir.join(FILE))
}

/// Returns whether `error` means that this user has no file. A service may have another user's directory as
/// its home, or none.
fn is_absent(path: &Path, error: &io::Error) -> bool {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => true,
        io::ErrorKind::PermissionDenied => path.symlink_metadata().is_err(),
        _ => false,
    }
}

/// A value that is not from a file.
fn unplaced(value: String) -> Spanned<String> {
    Spanned::new(0..0, value)
}

fn known(names: &[String]) -> String {
    if names.is_empty() {
        return ", which has none; create one with 'leasemux context set'".to_owned();
    }
    format!("; there are: {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn gateway(text: &str) -> ContextChange {
        ContextChange { gateway: Some(text.to_owned()), ..ContextChange::default() }
    }

    #[test]
    fn file_is_private_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/leasemux/contexts.toml");
        let contexts = Contexts::read_from(path.clone()).unwrap();
        assert_eq!((contexts.iter().count(), contexts.current()), (0, None));
        // A change that fails writes nothing.
        let unknown = Contexts::update_at(&path, |contexts| contexts.choose("prod"));
        assert!(matches!(unknown, Err(ContextsError::Unknown { .. })) && !dir.path().join("new").exists());
        let set = |name: &str, url| {
            Contexts::update_at(&path, |contexts| contexts.set(name, gateway(url))).unwrap()
        };
        assert!(set("prod", "https://a"), "the first one is the current one");
        assert!(!set("test", "https://b"));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        let again = Contexts::read_from(path.clone()).unwrap();
        assert_eq!(again.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["prod", "test"]);
        Contexts::update_at(&path, |contexts| contexts.choose("test")).unwrap();
        Contexts::update_at(&path, |contexts| contexts.delete("prod")).unwrap();
        let again = Contexts::read_from(path.clone()).unwrap();
        assert_eq!((again.get(None).unwrap().0, again.iter().count()), ("test", 1));
        let mut files: Vec<_> =
            fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["contexts.lock", "contexts.toml"], "no temporary file is left");
        // A link stays one.
        let link = dir.path().join("link.toml");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        Contexts::update_at(&link, |contexts| contexts.set("link", gateway("https://c"))).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(Contexts::read_from(path).unwrap().iter().count(), 2);
    }

    #[test]
    fn values_are_kept_and_credentials_replace_each_other() {
        let mut contexts = Contexts { path: PathBuf::from("/none"), ..Contexts::default() };
        contexts.set("a", ContextChange { identity: Some("id".into()), ..gateway("https://a") }).unwrap();
        contexts.set("a", ContextChange { lease: Some("l".to_owned()), ..ContextChange::default() }).unwrap();
        let (_, context) = contexts.get(None).unwrap();
        let absolute = std::path::absolute("id").unwrap().to_string_lossy().into_owned();
        assert_eq!((context.gateway(), context.lease()), (Some("https://a"), Some("l")));
        assert_eq!(context.credentials(), Some(absolute));
        contexts
            .set("a", ContextChange { token_file: Some("/t".into()), ..ContextChange::default() })
            .unwrap();
        let (_, context) = contexts.get(None).unwrap();
        assert_eq!(context.to_toml(), "gateway = \"https://a\"\ntoken-file = \"/t\"\nlease = \"l\"\n");
        // Without a current context, a change of one of several chooses none.
        contexts.set("b", gateway("https://b")).unwrap();
        contexts.set("c", gateway("https://c")).unwrap();
        contexts.delete("a").unwrap();
        assert!(!contexts.set("b", gateway("https://d")).unwrap() && contexts.current().is_none());
        assert!(contexts.get(None).unwrap_err().to_string().contains("no context is current"));
        for name in ["", "a b", "a/b", "ä", &"x".repeat(64)] {
            assert!(
                matches!(contexts.set(name, ContextChange::default()), Err(ContextsError::Name(_))),
                "{name}"
            );
        }
    }

    #[test]
    fn home_without_the_file_has_no_contexts() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().join("leasemux/contexts.toml");
        assert_eq!(Contexts::read_from(path.clone()).unwrap().iter().count(), 0);
        let saved = Contexts::update_at(&path, |contexts| contexts.set("a", gateway("https://a")));
        assert!(matches!(saved, Err(ContextsError::File { .. })));
    }

    #[test]
    fn errors_name_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("contexts.toml");
        let error = |text: &[u8]| {
            fs::write(&path, text).unwrap();
            let contexts = Contexts::read_from(path.clone());
            let found = contexts.and_then(|contexts| contexts.get(None).map(|_| ())).unwrap_err().to_string();
            found.strip_prefix(path.to_str().unwrap()).unwrap_or_else(|| panic!("{found}")).to_owned()
        };
        assert!(error(b"\n[contexts.a]\ngatewy = 'x'\n").starts_with(", line 3: unknown field `gatewy`"));
        assert!(error(b"[contexts.a]\n\ntoken = 'secret'\n").starts_with(", line 3: unknown field `token`"));
        assert!(error(b"[contexts.a\n").starts_with(", line 1: "));
        assert!(error(b"[contexts.a]\nlease = 7\n").starts_with(", line 2: "));
        assert!(
            error(b"\ncurrent = 'b'\n").starts_with(", line 2: the current context \"b\" does not exist")
        );
        let hostile = error(b"\n[contexts.'a;reboot']\n");
        assert!(hostile.starts_with(", line 2: \"a;reboot\" is not a name of a context"), "{hostile}");
        assert!(
            error(b"contexts.\"\\u001b[2J\" = {}\n").starts_with(", line 1: \"\\u{1b}[2J\" is not a name")
        );
        assert!(error(b"\xff").ends_with(": is not text in UTF-8"));
        assert!(error(&vec![b'#'; 600_000]).ends_with("larger than 524288 bytes"));
        fs::write(&path, "[contexts.one]\n[contexts.two]\n").unwrap();
        let contexts = Contexts::read_from(path.clone()).unwrap();
        assert!(contexts.get(Some("x")).unwrap_err().to_string().ends_with("; there are: one, two"));
    }
}
