//! Columns for a terminal.

use std::time::Duration;

/// Rows of text, with each column as wide as it must be and two spaces between.
pub(super) struct Table {
    /// Whether each column stands to the right, as numbers do.
    to_the_right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A name for each column; those that begin with `>` stand to the right.
    pub(super) fn new(head: &[&str]) -> Table {
        let to_the_right = head.iter().map(|name| name.starts_with('>')).collect();
        let head = head.iter().map(|name| name.trim_start_matches('>').to_owned()).collect();
        Table { to_the_right, rows: vec![head] }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.to_the_right.len());
        self.rows.push(cells);
    }

    /// Its lines, without spaces at their ends. A column of which all cells are empty is left out.
    pub(super) fn lines(&self) -> impl Iterator<Item = String> + '_ {
        let width = |column: usize| {
            let cells = || self.rows.iter().map(|row| row[column].chars().count());
            let is_empty = self.rows.len() > 1 && cells().skip(1).all(|width| width == 0);
            if is_empty { 0 } else { cells().max().unwrap_or(0) }
        };
        let widths: Vec<usize> = (0..self.to_the_right.len()).map(width).collect();
        self.rows.iter().map(move |row| {
            let cell = |(column, text): (usize, &String)| match (widths[column], self.to_the_right[column]) {
                (0, _) => None,
                (width, true) => Some(format!("{text:>width$}")),
                (width, false) => Some(format!("{text:<width$}")),
            };
            let cells: Vec<String> = row.iter().enumerate().filter_map(cell).collect();
            cells.join("  ").trim_end().to_owned()
        })
    }
}

/// How long ago, in the one unit that says it best.
pub(super) fn age(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_empty_ones_left_out() {
        let mut table = Table::new(&["name", ">bytes", "note", "state"]);
        table.row(["a", "10", "", "hot"].map(str::to_owned).to_vec());
        table.row(["long", "5", "", ""].map(str::to_owned).to_vec());
        let lines: Vec<String> = table.lines().collect();
        assert_eq!(lines, ["name  bytes  state", "a        10  hot", "long      5"]);
    }

    #[test]
    fn an_age_is_told_in_one_unit() {
        let ages = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(|secs| age(Duration::from_secs(secs)));
        assert_eq!(ages, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
    }
}
