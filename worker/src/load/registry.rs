//! Which loader fills which slice.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use pelton_region_format::Key;

use crate::config::ConfigError;
use crate::config::view::View;
use crate::load::AnyLoader;

/// Loaders by their names, as they are registered.
#[derive(Clone, Default)]
pub(crate) struct Loaders(BTreeMap<String, Arc<dyn AnyLoader>>);

/// Which loader fills which slice. Settled when the cache is opened.
#[derive(Default)]
pub(crate) struct Registry {
    /// Of the views that name a loader, in their order: the first that matches counts.
    views: Vec<(View, Arc<dyn AnyLoader>)>,
}

impl Loaders {
    /// One more. One that has the name already is replaced.
    pub(crate) fn insert(&mut self, name: String, loader: Arc<dyn AnyLoader>) {
        self.0.insert(name, loader);
    }

    /// All of the others. They replace those that have their names already.
    pub(crate) fn extend(&mut self, others: Loaders) {
        self.0.extend(others.0);
    }

    /// Finds the loader of each view.
    ///
    /// # Errors
    /// [`ConfigError`] if a view names one that nobody has registered.
    pub(crate) fn settle(&self, views: &[View]) -> Result<Registry, ConfigError> {
        let mut settled = Vec::new();
        for view in views {
            let Some(name) = &view.loader else { continue };
            let Some(loader) = self.0.get(name) else {
                return Err(ConfigError {
                    name: format!("loader of view {}", view.pattern),
                    value: format!("\"{name}\""),
                    allowed: self.names(),
                });
            };
            settled.push((view.clone(), loader.clone()));
        }
        Ok(Registry { views: settled })
    }

    fn names(&self) -> String {
        let names: Vec<String> = self.0.keys().map(|name| format!("\"{name}\"")).collect();
        match names.is_empty() {
            true => "nothing: no loader is registered".to_owned(),
            false => format!("one that is registered: {}", names.join(", ")),
        }
    }
}

impl fmt::Debug for Loaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Registry {
    /// The loader of a slice, if it has one.
    pub(crate) fn of(&self, key: &Key) -> Option<&Arc<dyn AnyLoader>> {
        self.views.iter().find(|(view, _)| view.pattern.matches(key)).map(|(_, loader)| loader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::fill::Fill;
    use crate::load::{Blocking, Counts, Loader, LoaderError};
    use crate::slice::plan::LoadPlan;

    struct Nothing;

    impl Loader for Nothing {
        fn plan(&self, _: &Key) -> Result<LoadPlan, LoaderError> {
            Err(LoaderError::NotThere)
        }

        fn fill(&self, _: &Fill) -> Result<Counts, LoaderError> {
            Err(LoaderError::NotThere)
        }
    }

    #[test]
    fn the_first_view_that_matches_and_names_a_loader_counts() {
        let mut loaders = Loaders::default();
        let known: Vec<Arc<dyn AnyLoader>> = vec![Arc::new(Blocking(Nothing)), Arc::new(Blocking(Nothing))];
        for (name, loader) in ["one", "two"].into_iter().zip(&known) {
            loaders.insert(name.to_owned(), loader.clone());
        }
        let view = |pattern: &str| View::new(pattern.parse().unwrap());
        let views = [view("a/b"), view("a/b").loader("two"), view("a/*").loader("one")];
        let registry = loaders.settle(&views).unwrap();
        let of = |key: &str| {
            let found = registry.of(&key.parse().unwrap())?;
            known.iter().position(|loader| Arc::ptr_eq(loader, found))
        };
        assert_eq!([of("a/b@1#0"), of("a/c@1#0"), of("b/b@1#0")], [Some(1), Some(0), None]);
    }

    #[test]
    fn a_view_that_names_an_unknown_loader_is_refused_with_the_known_ones() {
        let mut loaders = Loaders::default();
        let view = View::new("a/*".parse().unwrap()).loader("fils");
        let told = |loaders: &Loaders| loaders.settle(std::slice::from_ref(&view)).err().unwrap().to_string();
        let alone = "loader of view a/*@*#* is \"fils\", allowed is nothing: no loader is registered";
        assert_eq!(told(&loaders), alone);
        loaders.insert("files".to_owned(), Arc::new(Blocking(Nothing)));
        assert!(told(&loaders).ends_with("allowed is one that is registered: \"files\""));
    }
}
