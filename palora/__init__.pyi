__version__: str

from palora.algebra.subspace import ProtectedSubspace as ProtectedSubspace
from palora.algebra.subspace import ProtectedSubspaces as ProtectedSubspaces
from palora.common.errors import InputError as InputError
from palora.common.errors import PaloraError as PaloraError
from palora.common.settings import EvaluateSettings as EvaluateSettings
from palora.common.settings import ExpertSettings as ExpertSettings
from palora.common.settings import InjectSettings as InjectSettings
from palora.common.settings import ProtectSettings as ProtectSettings
from palora.data.facts import Fact as Fact
from palora.data.facts import read_facts as read_facts
from palora.data.skills import Problem as Problem
from palora.data.skills import Skill as Skill
from palora.data.skills import get_skill as get_skill
from palora.front.pipeline import run as run
from palora.front.recipe import Recipe as Recipe
from palora.front.recipe import load_recipe as load_recipe
from palora.language.keep import Keep as Keep
from palora.language.models import load_model as load_model
from palora.training.expert import train_expert as train_expert
from palora.training.injection import Beside as Beside
from palora.training.injection import inject as inject
from palora.training.keeping import keeping as keeping
from palora.training.lora import PaloraConfig as PaloraConfig
from palora.training.protection import protect as protect
from palora.training.svf import Expert as Expert
