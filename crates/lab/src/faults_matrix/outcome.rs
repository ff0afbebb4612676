//! What a cell came to, as one line and as a table.

use std::fmt;
use std::time::Duration;

use super::cell::Cell;
use crate::witness::Reckoning;

/// What a cell came to.
#[derive(Clone, Debug)]
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
}
