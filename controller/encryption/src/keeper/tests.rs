//! The life of keys: made, missing, the user's, rotated, changed under a running process, taken out.

use super::*;
use causeway_store::{SledOptions, SledStore};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const KEY: &str = "/registry/core/secrets/default/a";

struct Lab {
    dir: tempfile::TempDir,
    inner: Arc<dyn Store>,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let inner = Arc::new(SledStore::open(&dir.path().join("store"), SledOptions::default()).unwrap());
        Self { dir, inner }
    }

    fn own(&self) -> PathBuf {
        self.dir.path().join("encryption.yaml")
    }

    async fn open(&self, named: Option<&Path>) -> Result<Keeper> {
        Keeper::open(self.inner.clone(), &self.own(), named).await
    }

    /// A file of the user.
    fn file(&self, keys: &[(&str, u8)]) -> PathBuf {
        let keys: Vec<String> =
            keys.iter().map(|(n, b)| format!("{{name: {n}, secret: {}}}", file_secret(*b))).collect();
        let path = self.dir.path().join("mine.yaml");
        let text = format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [{{resources: [secrets], \
             providers: [{{aesgcm: {{keys: [{}]}}}}]}}]",
            keys.join(",")
        );
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    async fn label(&self) -> String {
        EncryptedStore::label(&self.inner.get(KEY, None).await.unwrap().0.unwrap().value)
    }
}

fn file_secret(byte: u8) -> String {
    crate::config::NamedKey::new(String::new(), &[byte; 32]).secret
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_made_once_and_nothing_starts_without_it_afterwards() {
    let lab = Lab::new();
    lab.inner.create(KEY, "plain".into()).await.unwrap();
    let keeper = lab.open(None).await.unwrap();
    assert_eq!(fs::metadata(lab.own()).unwrap().permissions().mode() & 0o777, 0o600);
    let made = fs::read(lab.own()).unwrap();
    assert_eq!(keeper.store().get(KEY, None).await.unwrap().0.unwrap().value, "plain");
    assert_eq!(keeper.bring_over().await.unwrap().rewritten, 1);
    assert!(lab.label().await.starts_with("aesgcm:key-"));
    let again = lab.open(None).await.unwrap();
    assert_eq!(fs::read(lab.own()).unwrap(), made);
    assert_eq!(again.store().get(KEY, None).await.unwrap().0.unwrap().value, "plain");
    fs::remove_file(lab.own()).unwrap();
    let error = lab.open(None).await.err().unwrap().to_string();
    assert!(error.contains("encryption.yaml") && error.contains("store restore"), "{error}");
    assert!(!lab.own().exists(), "no other key is made in its place");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_brings_all_over_and_old_keys_go_later() {
    let lab = Lab::new();
    let keeper = lab.open(None).await.unwrap();
    keeper.store().create(KEY, "x".into()).await.unwrap();
    let first = lab.label().await;
    let rotated = keeper.rotate().await.unwrap();
    assert_eq!((rotated.rewritten.rewritten, rotated.removed.len()), (1, 0));
    assert_eq!(lab.label().await, format!("aesgcm:{}", rotated.key));
    assert_ne!(lab.label().await, first);
    assert_eq!(keeper.prune(PRUNE_AFTER).await.unwrap(), Vec::<String>::new(), "a backup may still need it");
    // Somebody writes with the old key yet.
    let (old, _) = file::read(&lab.own()).unwrap().unwrap();
    let mut swapped = old.clone();
    swapped.resources[0].providers[0].aesgcm.as_mut().unwrap().keys.reverse();
    let stale = EncryptedStore::new(lab.inner.clone(), &swapped);
    stale.create("/registry/core/secrets/default/b", "y".into()).await.unwrap();
    assert_eq!(keeper.prune(Duration::ZERO).await.unwrap(), Vec::<String>::new(), "it is in use");
    keeper.bring_over().await.unwrap();
    assert_eq!(keeper.prune(Duration::ZERO).await.unwrap(), [first.trim_start_matches("aesgcm:")]);
    let again = lab.open(None).await.unwrap();
    assert_eq!(again.store().get(KEY, None).await.unwrap().0.unwrap().value, "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_user_is_used_watched_and_never_changed() {
    let lab = Lab::new();
    // There was a key of the program before.
    lab.open(None).await.unwrap().store().create(KEY, "x".into()).await.unwrap();
    let path = lab.file(&[("mine", 1)]);
    let keeper = Arc::new(lab.open(Some(&path)).await.unwrap());
    assert_eq!(keeper.store().get(KEY, None).await.unwrap().0.unwrap().value, "x");
    assert!(keeper.rotate().await.unwrap_err().to_string().contains("not the program's own"));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn({
        let keeper = keeper.clone();
        async move { keeper.run(async { drop(stopped.await) }).await }
    });
    let becomes = async |label: &str| {
        for _ in 0..200 {
            if lab.label().await == label {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("it stays {}", lab.label().await);
    };
    becomes("aesgcm:mine").await;
    lab.file(&[("next", 2), ("mine", 1)]);
    becomes("aesgcm:next").await;
    // Also where the old one is taken away too early.
    lab.file(&[("last", 3)]);
    becomes("aesgcm:last").await;
    assert_eq!(keeper.store().get(KEY, None).await.unwrap().0.unwrap().value, "x");
    fs::write(&path, "nonsense").unwrap();
    let error = tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("mine.yaml"), "{error}");
    assert_eq!(keeper.store().get(KEY, None).await.unwrap().0.unwrap().value, "x", "the one before stays in use");
    drop(stop);
    let error = lab.open(Some(Path::new("/nowhere/keys.yaml"))).await.err().unwrap().to_string();
    assert!(error.contains("/nowhere/keys.yaml"), "{error}");
}
