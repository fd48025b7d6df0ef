//! Where answers go: text for people, one JSON object a line for scripts.

use std::io::{self, Write};

use serde_json::Value;

/// Standard output in the form that was asked for.
///
/// Text may carry colours; they are taken out where the output is no terminal
/// or `NO_COLOR` is set. Every call flushes, so that a reader of a pipe sees a
/// line when it is written.
pub struct Out {
    json: bool,
    stream: Box<dyn Write + Send>,
}

impl Out {
    /// Writes to standard output.
    #[must_use]
    pub fn standard(json: bool) -> Self {
        Self {
            json,
            stream: Box::new(anstream::stdout()),
        }
    }

    /// Says whether JSON is wanted.
    #[must_use]
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Writes text as it is; nothing where JSON is wanted.
    ///
    /// # Errors
    /// Fails if the output does, such as a pipe whose reader is gone.
    pub fn text(&mut self, text: &str) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        self.stream.write_all(text.as_bytes())?;
        self.stream.flush()
    }

    /// Writes an object as one line; nothing where text is wanted.
    ///
    /// # Errors
    /// Fails if the output does.
    pub fn object(&mut self, object: &Value) -> io::Result<()> {
        if !self.json {
            return Ok(());
        }
        writeln!(self.stream, "{object}")?;
        self.stream.flush()
    }
}
