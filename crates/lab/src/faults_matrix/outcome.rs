//! What a cell came to, as one line, as a table and as a line of JSON that can be read back.

use std::fmt;
use std::io::{self, BufRead as _};
use std::time::Duration;

use camino::Utf8Path;
use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::cell::Cell;
use crate::scene::SceneError;
use crate::witness::Reckoning;

/// What a cell came to.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Outcome {
    /// Which cell.
    pub cell: Cell,
    /// Exit code of the command that met the fault; 137 when it was killed.
    pub exit: i32,
    /// What the hosts ran when it had ended.
    pub after_the_fault: String,
    /// What was typed after that, with exit codes.
    pub then: Vec<String>,
    /// What the hosts ran in the end.
    pub end: String,
    /// Rows, counted in the end.
    pub rows: Reckoning,
    /// The longest stretch in which a process, the leader or a subtask was not in service.
    pub out_of_service: Duration,
    /// The whole cell.
    pub took: Duration,
    /// What is not as it must be.
    pub wrong: Vec<String>,
    /// All that was typed and said.
    pub said: Vec<String>,
}

impl Outcome {
    pub(super) fn of(cell: Cell) -> Self {
        Self {
            cell,
            exit: -1,
            after_the_fault: "?".to_owned(),
            then: Vec::new(),
            end: "?".to_owned(),
            rows: Reckoning::default(),
            out_of_service: Duration::ZERO,
            took: Duration::ZERO,
            wrong: Vec::new(),
            said: Vec::new(),
        }
    }

    pub(super) fn without_a_cluster(cell: Cell, why: &SceneError) -> Self {
        let wrong = vec![format!("the cluster could not be set up: {why}")];
        Self { wrong, ..Self::of(cell) }
    }

    /// Everything is as it must be.
    pub fn is_as_it_must_be(&self) -> bool {
        self.wrong.is_empty()
    }

    fn columns(&self) -> [String; 10] {
        let short = |builds: &str| builds.split(' ').next().unwrap_or_default().to_owned();
        let seconds = |span: Duration| format!("{:.1}", span.as_secs_f64());
        [
            self.cell.to_string(),
            self.exit.to_string(),
            short(&self.after_the_fault),
            self.then.join(", "),
            short(&self.end),
            self.rows.lost.to_string(),
            self.rows.doubled.to_string(),
            seconds(self.rows.longest_gap),
            seconds(self.out_of_service),
            if self.is_as_it_must_be() { "ok" } else { "WRONG" }.to_owned(),
        ]
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let then = if self.then.is_empty() {
            String::new()
        } else {
            format!(", then {}", self.then.join(", "))
        };
        write!(
            f,
            "{}: exit {}, hosts {}{then}, in the end {}; {}; out of service {:.1} s; took {:.0} s: {}",
            self.cell,
            self.exit,
            self.after_the_fault,
            self.end,
            self.rows,
            self.out_of_service.as_secs_f64(),
            self.took.as_secs_f64(),
            if self.is_as_it_must_be() { "ok" } else { "WRONG" }
        )?;
        for wrong in &self.wrong {
            write!(f, "\n  wrong: {wrong}")?;
        }
        if !self.is_as_it_must_be() {
            for said in &self.said {
                write!(f, "\n  | {}", said.replace('\n', "\n  | "))?;
            }
        }
        Ok(())
    }
}

const HEADER: [&str; 10] =
    ["cell", "exit", "hosts", "then", "end", "lost", "doubled", "gap s", "safe s", ""];

/// The table. `gap s`: the longest time in which written rows were waited for. `safe s`: the longest time until everything was in service again.
pub fn render(outcomes: &[Outcome]) -> String {
    let mut rows = vec![HEADER.map(str::to_owned)];
    rows.extend(outcomes.iter().map(Outcome::columns));
    let mut widths = [0; 10];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    let wrong = outcomes.iter().filter(|outcome| !outcome.is_as_it_must_be()).count();
    text.push_str(&format!("{} cells, {wrong} wrong\n", outcomes.len()));
    text
}

/// What [`Outcome`]s somebody has appended to a file, one JSON object a line; of a cell that was tried twice, the last. Without the
/// file, none. A last line that was torn off is passed over, as that cell has not ended for whoever reads.
///
/// # Errors
///
/// A file that cannot be read, or that holds something else.
pub fn read_outcomes(file: &Utf8Path) -> io::Result<Vec<Outcome>> {
    let lines = match fs::File::open(file) {
        Ok(file) => io::BufReader::new(file).split(b'\n').collect::<Result<Vec<_>, _>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    let mut outcomes: Vec<Outcome> = Vec::new();
    for (number, line) in (1..).zip(&lines) {
        match serde_json::from_slice::<Outcome>(line) {
            Ok(outcome) => {
                outcomes.retain(|earlier| earlier.cell != outcome.cell);
                outcomes.push(outcome);
            }
            Err(error) if error.is_eof() && number == lines.len() => {}
            Err(error) => {
                return Err(io::Error::other(format!("read {file}, line {number}: {error}")));
            }
        }
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults_matrix::{Fault, Phase, Rules, Turn};

    #[test]
    fn the_table_lines_up_and_counts_what_is_wrong() {
        let cell = Cell {
            rules: Rules::V8,
            fault: Fault::CutHost,
            phase: Phase::Window,
            turn: Turn::Bound,
        };
        let good = Outcome {
            exit: 7,
            after_the_fault: "mixed (new on h1)".to_owned(),
            then: vec!["resume 0".to_owned()],
            end: "new".to_owned(),
            out_of_service: Duration::from_millis(41_250),
            ..Outcome::of(cell)
        };
        let mut bad = Outcome::of(cell);
        bad.wrong.push("rows".to_owned());
        let table = render(&[good, bad]);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(
            lines[0],
            "cell             exit  hosts  then      end  lost  doubled  gap s  safe s"
        );
        assert_eq!(
            lines[1],
            "cut-host:window  7     mixed  resume 0  new  0     0        0.0    41.2    ok"
        );
        assert!(lines[2].ends_with("WRONG"));
        assert_eq!(lines[3], "2 cells, 1 wrong");
    }
    #[test]
    fn outcomes_are_read_back_and_a_torn_line_at_the_end_costs_only_its_own_cell() {
        let dir = tempfile::tempdir().unwrap();
        let file = Utf8Path::from_path(dir.path()).unwrap().join("outcomes");
        assert!(read_outcomes(&file).unwrap().is_empty());
        let cells = Cell::select(&["cut-host".to_owned()]).unwrap();
        let mut first = Outcome { exit: 7, ..Outcome::of(cells[0]) };
        first.wrong.push("a guard is armed".to_owned());
        let second =
            Outcome { out_of_service: Duration::from_millis(2500), ..Outcome::of(cells[1]) };
        let again = Outcome { exit: 0, ..Outcome::of(cells[0]) };
        let mut text = String::new();
        for outcome in [&first, &second, &again] {
            text.push_str(&serde_json::to_string(outcome).unwrap());
            text.push('\n');
        }
        fs::write(&file, format!("{text}{}", &text[..60])).unwrap();
        let read = read_outcomes(&file).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].cell, read[0].out_of_service), (cells[1], second.out_of_service));
        assert_eq!((read[1].cell, read[1].exit), (cells[0], 0));
        fs::write(&file, "nonsense\n").unwrap();
        assert!(read_outcomes(&file).unwrap_err().to_string().contains("line 1"));
    }
}
