//! `testbed sql`: one query, one table, no client to install.
//!
//! The query goes over PostgreSQL's simple protocol, in which every value comes back as text: so any type can be shown.

use std::time::Duration;

use anyhow::{Context, Result};
use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, Column, Connection, Either, PgConnection, Row, ValueRef, postgres::PgRow};

const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A terminal is no place for more.
const ROWS_MAX: usize = 10_000;

/// What a statement gave: rows, or how many it has touched.
#[derive(Debug, Default)]
pub(crate) struct Table {
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
    affected: u64,
    cut: bool,
}

/// Runs what the user has typed, with the rights of the role in the URL.
pub(crate) async fn query(url: &str, text: &str) -> Result<Table> {
    let connecting = PgConnection::connect(url);
    let mut connection = tokio::time::timeout(CONNECT_LIMIT, connecting)
        .await
        .context("PostgreSQL does not answer")?
        .context("connect to the database")?;
    let mut table = Table::default();
    let mut results = sqlx::raw_sql(AssertSqlSafe(text.to_owned())).fetch_many(&mut connection);
    while let Some(result) = results.try_next().await? {
        match result {
            Either::Left(done) => table.affected += done.rows_affected(),
            Either::Right(_) if table.rows.len() == ROWS_MAX => {
                table.cut = true;
                break;
            }
            Either::Right(row) => table.add(&row)?,
        }
    }
    Ok(table)
}

impl Table {
    fn add(&mut self, row: &PgRow) -> Result<()> {
        if self.columns.is_empty() {
            self.columns = row.columns().iter().map(|column| column.name().to_owned()).collect();
        }
        let mut values = Vec::with_capacity(row.len());
        for index in 0..row.len() {
            let value = row.try_get_raw(index).context("read a value")?;
            values.push(if value.is_null() { String::new() } else { cell(value.as_str().unwrap_or("?")) });
        }
        self.rows.push(values);
        Ok(())
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.columns.is_empty() {
            return writeln!(f, "({} rows)", self.affected);
        }
        let width = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(index)).chain(self.columns.get(index));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |cells: &[String]| {
            let padded = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
            padded.collect::<Vec<_>>().join(" | ").trim_end().to_owned()
        };
        writeln!(f, "{}", line(&self.columns))?;
        writeln!(f, "{}", widths.iter().map(|&width| "-".repeat(width)).collect::<Vec<_>>().join("-+-"))?;
        for row in &self.rows {
            writeln!(f, "{}", line(row))?;
        }
        let more = if self.cut { ", and more" } else { "" };
        writeln!(f, "({} rows{more})", self.rows.len())
    }
}

/// One value on one line.
fn cell(text: &str) -> String {
    text.replace(['\n', '\r'], "\\n").replace('\t', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use testbed::stack::Stack;

    #[tokio::test]
    async fn every_type_is_shown_and_a_mistake_is_told() {
        let stack = Stack::get().await.unwrap();
        let database = stack.database("sql").await.unwrap();
        let url = database.url("payment_outbox");
        let shown = query(
            &url,
            "SELECT 12 AS a, 'x
y' AS b, NULL::uuid AS none, '{\"k\": [1]}'::jsonb AS j, '1 day'::interval AS i, ARRAY[1,2] AS l",
        )
        .await
        .unwrap()
        .to_string();
        assert_eq!(
            shown,
            "a  | b    | none | j          | i     | l\n---+------+------+------------+-------+------\n\
             12 | x\\ny |      | {\"k\": [1]} | 1 day | {1,2}\n(1 rows)\n"
        );
        let touched = query(&url, "CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2)").await.unwrap();
        assert_eq!(touched.to_string(), "(2 rows)\n");
        let error = query(&url, "SELECT nothing FROM nowhere").await.unwrap_err();
        assert!(format!("{error:#}").contains("nowhere"), "{error:#}");
    }

    #[tokio::test]
    async fn rows_are_bounded() {
        let stack = Stack::get().await.unwrap();
        let url = stack.postgres_url("operator", "postgres");
        let table = query(&url, "SELECT generate_series(1, 10001)").await.unwrap();
        assert!(table.to_string().ends_with("(10000 rows, and more)\n"));
    }
}
