//! Controllers and scheduler beside the API server of this process, with clients that need no socket. In: the API
//! server. Out: supervised components.

use crate::paths::Paths;
use crate::tasks::Tasks;
use causeway_api::config::ClusterConfig;
use causeway_api::identity::{USER_CONTROLLER_MANAGER, USER_CONTROLLERS, USER_SCHEDULER, UserInfo};
use causeway_apiserver::ApiServer;
use causeway_controllers::ControllersConfig;
use causeway_informers::Informers;
use causeway_scheduler::SchedulerConfig;
use std::sync::Arc;

/// The copies that the components of the control plane share.
pub fn informers(api: &ApiServer) -> Informers {
    Informers::new(api.client(UserInfo::component(USER_CONTROLLERS, &[])))
}

/// Starts them.
pub fn start(api: &Arc<ApiServer>, informers: &Informers, cluster: &ClusterConfig, paths: &Paths, control: &mut Tasks) {
    let volumes = paths.data.join("volumes");
    let mut controllers = ControllersConfig::new(cluster.clone(), api.pki().ca_pem().to_owned(), volumes);
    controllers.api_hosts = api.hosts().to_vec();
    control.supervise("controllers", {
        let (api, informers, token) = (api.clone(), informers.clone(), control.token());
        move || {
            let client = api.client(UserInfo::component(USER_CONTROLLER_MANAGER, &[]));
            causeway_controllers::run(client, informers.clone(), controllers.clone(), token.clone())
        }
    });
    control.supervise("scheduler", {
        let (api, informers, token) = (api.clone(), informers.clone(), control.token());
        move || {
            let client = api.client(UserInfo::component(USER_SCHEDULER, &[]));
            causeway_scheduler::run(client, informers.clone(), SchedulerConfig::default(), token.clone())
        }
    });
}
