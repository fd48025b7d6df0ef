//! Child processes with a deadline on everything they are waited for.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest wait for a line or for an end.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often an end is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// The command under test, without configuration from the outside.
pub(crate) fn passline(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_passline"));
    command
        .args(arguments)
        .env_clear()
        .current_dir(std::env::temp_dir());
    command
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Runs a command to its end.
    pub(crate) fn of(command: Command) -> Self {
        Running::start(command).wait()
    }

    /// The lines of standard output, each of them an object.
    pub(crate) fn objects(&self) -> Vec<Value> {
        self.stdout.lines().map(object).collect()
    }
}

fn object(line: &str) -> Value {
    let object: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"));
    assert!(object.is_object(), "no object: {line}");
    object
}

/// A process that runs; killed when dropped.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    seen: String,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut stderr = child.stderr.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let stderr = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        Self {
            child,
            lines,
            seen: String::new(),
            stderr: Some(stderr),
        }
    }

    /// The next line of standard output, an object.
    pub(crate) fn next_object(&mut self) -> Value {
        let Ok(line) = self.lines.recv_timeout(DEADLINE) else {
            let _ = self.child.kill();
            let stderr = self.stderr.take().unwrap().join().unwrap();
            panic!("no line came after {:?}; stderr: {stderr}", self.seen);
        };
        let object = object(&line);
        self.keep(&line);
        object
    }

    /// The next object that has `member`.
    pub(crate) fn next_object_with(&mut self, member: &str) -> Value {
        loop {
            let object = self.next_object();
            if !object[member].is_null() {
                return object;
            }
        }
    }

    /// Asks the process to end, and waits for it.
    pub(crate) fn stop(self) -> Finished {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).unwrap();
        self.wait()
    }

    fn wait(mut self) -> Finished {
        let began = Instant::now();
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code().unwrap_or(-1);
            }
            if began.elapsed() > DEADLINE {
                let _ = self.child.kill();
                let stderr = self.stderr.take().unwrap().join().unwrap();
                panic!("did not end; stdout: {}; stderr: {stderr}", self.seen);
            }
            std::thread::sleep(LOOK_INTERVAL);
        };
        while let Ok(line) = self.lines.recv_timeout(DEADLINE) {
            self.keep(&line);
        }
        let stderr = self.stderr.take().unwrap().join().unwrap();
        Finished {
            code,
            stdout: std::mem::take(&mut self.seen),
            stderr,
        }
    }

    fn keep(&mut self, line: &str) {
        self.seen.push_str(line);
        self.seen.push('\n');
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
