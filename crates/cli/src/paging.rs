//! Long lists: how many rows to show, and where to begin.
//!
//! Owns the arguments that every list has, and the loop over a server's pages.

use clap::Args;

use crate::output::grouped;

/// The most rows that a server returns at once.
const SERVER_PAGE: usize = 500;

/// The part of a list to show.
#[derive(Debug, Clone, Args)]
pub struct PageArgs {
    /// The most rows to show.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least_one)]
    limit: usize,
    /// Continue a list: give the page that it named at its end.
    #[arg(
        long,
        value_name = "PAGE",
        default_value = "",
        hide_default_value = true
    )]
    page: String,
}

impl PageArgs {
    /// So many rows from the beginning.
    pub const fn first(limit: usize) -> Self {
        Self {
            limit,
            page: String::new(),
        }
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("write a number of rows, at least 1".to_owned()),
        Ok(rows) => Ok(rows),
    }
}

/// A list that is fetched page by page.
#[derive(Debug)]
pub struct Paged<T> {
    limit: usize,
    /// Where the next page begins; `None`: there is no next page.
    next: Option<String>,
    /// The rows so far.
    pub items: Vec<T>,
}

impl<T> Paged<T> {
    /// The state before anything is fetched.
    pub fn new(args: PageArgs) -> Self {
        Self {
            limit: args.limit,
            next: Some(args.page),
            items: Vec::new(),
        }
    }

    /// Size and token of the next page to request; `None` if there are enough rows, or no more.
    pub fn next(&self) -> Option<(u32, String)> {
        let missing = self.limit.saturating_sub(self.items.len());
        let size = u32::try_from(missing.min(SERVER_PAGE)).unwrap_or(0);
        let token = self.next.clone()?;
        (size > 0).then_some((size, token))
    }

    /// Adds a page and the start of the next one; an empty token ends the list.
    pub fn take(&mut self, page: Vec<T>, next: String) {
        self.items.extend(page);
        self.next = (!next.is_empty()).then_some(next);
    }

    /// Where the list continues; `None` if it was shown to its end.
    pub fn next_page(&self) -> Option<&str> {
        self.next.as_deref()
    }

    /// A line below a table that is not the whole list.
    pub fn more(&self) -> String {
        self.next_page().map_or_else(String::new, |page| {
            format!(
                "\n{} shown; for more: --page {page}",
                grouped(self.items.len() as u64)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paged(limit: usize) -> Paged<u32> {
        Paged::new(PageArgs::first(limit))
    }

    #[test]
    fn pages_are_asked_for_until_there_are_enough_rows() {
        let mut rows = paged(600);
        assert_eq!(rows.next(), Some((500, String::new())));
        rows.take(vec![0; 500], "a".to_owned());
        assert_eq!(rows.next(), Some((100, "a".to_owned())));
        // A page may be short, and have a next one.
        rows.take(vec![0; 20], "b".to_owned());
        assert_eq!(rows.next(), Some((80, "b".to_owned())));
        rows.take(vec![0; 80], "c".to_owned());
        assert_eq!(rows.next(), None);
        assert_eq!(rows.more(), "\n600 shown; for more: --page c");
    }

    #[test]
    fn a_list_that_is_shown_whole_says_nothing_of_more() {
        let mut rows = paged(10);
        rows.take(vec![1], String::new());
        assert_eq!((rows.next(), rows.next_page()), (None, None));
        assert_eq!(rows.more(), "");
    }
}
