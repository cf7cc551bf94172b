"""What open requests are about. Topics of a group fit the same sentences: all clauses, noun phrases or gerunds."""


def split(block: str) -> list[str]:
    """The topics of a block, which "|" stands between, also where a line ends."""
    return [" ".join(topic.split()) for topic in block.split("|")]


PROCESSES = split("""
how tides come and go|how a bicycle stays upright|how rainbows form|why the sky is blue and sunsets are red|
how bees make honey|how bread rises|how a sailing boat moves against the wind|how a canal lock lifts a boat|
how glass is blown|how paper is recycled|how coffee beans are roasted|how a piano makes its sound|
how a thermos flask keeps soup hot|why leaves turn red in autumn|how birds find their way south|
how a seed becomes a plant|how spiders spin webs|how caves are formed|how volcanoes erupt|
how snowflakes get their shape|how a zip fastener closes|how a pendulum clock keeps time|how a refrigerator cools|
how a microwave oven heats food|how a compass finds north|how an echo arises|why ice floats on water|
why the moon changes its shape|how an eclipse of the sun happens|how the seasons come about|how rivers carve valleys|
how pearls grow in oysters|how silk is made|how wool becomes yarn|how cheese ripens|
how chocolate is made from cocoa beans|how soap removes grease|how a candle burns|how a hot-air balloon rises|
why the wings of an aeroplane hold it up|how a submarine dives|how a telescope makes stars look closer|
how a camera takes a picture|how a mirror reflects light|how a magnet attracts iron|how a battery stores energy|
how a solar panel makes electricity|how a wind turbine turns a breeze into power|how a dam produces electricity|
how a barcode is read|how maps are drawn|how a violin is tuned|why onions make us cry|why popcorn pops|
how salt preserves food|how yeast ferments dough|how strawberry jam thickens|how compost turns into soil|
how earthworms improve a garden|how a cactus survives drought|how bats find their way in the dark|how fireflies glow|
how chameleons change colour|how penguins keep warm|how fish breathe under water|how whales sing to one another|
how a caterpillar becomes a butterfly|how fossils come to be|how amber traps insects|
how diamonds form deep in the earth|how earthquakes are measured|how mist and fog appear over fields|
why thunder follows lightning|how hail grows in a cloud|how a weather forecast is made|how glaciers move|
why seawater is salty|how a bridge carries its load|how an arch stands without mortar|how skyscrapers sway in the wind|
how tunnels are dug|how concrete hardens|how rust eats iron|how a key opens a lock|how shadows change during the day
""")
SUBJECTS = split("""
a lighthouse on a stormy night|coral reefs|a village market in the morning|an old railway station|
the inside of a beehive|a snowed-in cabin|a city seen from a rooftop|a bakery before sunrise|a desert at noon|
tropical rainforests|a harbour full of fishing boats|a thunderstorm over a lake|a library with creaking floors|
a clock tower|the northern lights|a tropical island|a meadow full of wild flowers|an abandoned factory|
a mountain pass in winter|a school playground at break|a lavender field|an orchestra tuning up|a circus tent|
a grandmother's kitchen|a greenhouse full of orchids|a waterfall in a forest|hedgehogs|owls|octopuses|
elephants at a waterhole|snow leopards|sea turtles|dragonflies|peacocks|a lazy cat on a windowsill|an aquarium|
a night train|a cable car|a lemon orchard|a pumpkin patch|rice terraces|a vineyard at harvest time|a frozen pond|
a hot spring|a salt lake|a bamboo grove|a maple tree in autumn|a field of sunflowers|a cliff with nesting seabirds|
sand dunes at sunset|a river delta|geysers|a dripstone cave|a full moon over the sea|the night sky in the countryside|
a comet|a planet with rings|a medieval castle|a windmill|a stone bridge|a spiral staircase|
a theatre just before the curtain rises|a street musician|a flea market|a chess game in the park|a potter at the wheel|
a glass blower's furnace|a crowded ferry|a second-hand bookshop|a patchwork quilt|a grandfather clock|a typewriter|
an hourglass|a rocking chair|a wooden house high up in a tree|a kite festival|a lantern parade|a football stadium|
an ice rink|a swimming pool in summer|a campfire by a lake|a picnic under an oak|a teahouse in the hills|
a spice bazaar|a chocolate shop
""")
SKILLS = split("""
keeping house plants alive|baking sourdough bread|learning a foreign language|packing a suitcase|
growing tomatoes on a balcony|taking better photos|playing the guitar|speaking in front of an audience|
remembering names|saving electricity at home|tidying a wardrobe|riding a bicycle in traffic|cooking for a crowd|
brewing good coffee|drawing faces|painting a room|knitting a scarf|sewing on a button|mending torn jeans|
polishing leather shoes|ironing shirts|removing stains from a tablecloth|chopping onions|making fresh pasta|
poaching eggs|reducing food waste|planning a week of meals|shopping on a small budget|keeping a diary|
reading more books|running a book club|choosing a present|wrapping parcels|organising a birthday party|
hosting a quiz night|preparing a picnic|pitching a tent|lighting a stove|hiking with children|
reading maps and signposts|training a puppy|keeping goldfish|feeding garden birds|attracting butterflies to a garden|
starting a compost heap|pruning roses|mowing a lawn|raking leaves|growing herbs indoors|planting a tree|
building a bookshelf|painting a fence|fixing a flat tyre|cleaning windows|parking in a narrow space|
travelling by train with luggage|swimming front crawl|playing chess|juggling with three balls|dancing at a wedding|
singing in tune|practising the piano|memorising a poem|telling jokes|telling bedtime stories|writing a thank-you note|
writing a detective story|spelling difficult words|doing sums in one's head|preparing for an exam|
taking notes in a lecture|working from home|setting up a desk|leading a meeting|moving house|waking up early|
stargazing with binoculars|watching birds|making candles|folding paper cranes|carving a pumpkin|building a sandcastle|
flying a kite|skipping stones|repotting a cactus
""")
COMPARED = split("""
trains and buses|bicycles and scooters|laptops and tablets|coffee and lemonade|apples and oranges|kittens and puppies|
goats and sheep|lakes and rivers|mountains and beaches|summer and winter|spring and autumn|paperbacks and hardbacks|
novels and plays|pianos and guitars|tennis and badminton|chess and dominoes|football and basketball|
swimming and jogging|skiing and skating|bread and rice|pasta and potatoes|butter and margarine|honey and sugar|
lemons and limes|tulips and daffodils|roses and orchids|ferns and cactuses|owls and falcons|ducks and swans|
crocodiles and alligators|dolphins and sharks|butterflies and moths|turtles and tortoises|rabbits and hares|
horses and donkeys|camels and llamas|wool and cotton|leather and canvas|wood and steel|glass and plastic|
brick and concrete|candles and lamps|letters and emails|radio and cinema|newspapers and magazines|
museums and aquariums|libraries and bookshops|villages and cities|apartments and houses|gardens and balconies|
hotels and campsites|trams and taxis|highways and country lanes|ladders and stairs|forks and chopsticks|
sandals and boots|mittens and gloves|watches and clocks|poems and songs|painting and sculpture|volcanoes and geysers|
deserts and jungles|planets and stars|bridges and tunnels|castles and palaces|soup and salad|pancakes and waffles|
cakes and biscuits|cinnamon and vanilla|cheese and cream
""")
OCCASIONS = split("""
asking a neighbour to water the plants during a holiday|thanking an aunt for a knitted scarf|
inviting an old classmate to a barbecue|apologising for a broken vase|telling a landlord about a dripping tap|
complaining about a late parcel|congratulating a cousin on a new shop|asking a library to extend a loan|
cancelling a music lesson|inviting neighbours to a street party|asking a teacher for more time for an essay|
thanking a host for a weekend by the lake|telling a friend about a new puppy|asking a colleague to swap shifts|
ordering a cake for an anniversary|asking a hotel about a forgotten umbrella|praising the staff of a small restaurant|
applying for a summer job at a bookshop|applying for a place in a choir|asking a museum about a guided tour|
asking the town hall to mend a street lamp|inviting a grandmother to a school play|
thanking a bus driver for finding a glove|telling a chess club about a change of address|offering a piano to a school|
asking a gym to end a membership|recommending a gardener to a friend|asking a baker for a recipe|
welcoming a new colleague|saying goodbye to a team before a move|reminding tenants to sort the rubbish|
asking upstairs neighbours to play music more quietly|wishing a friend luck before a driving test|
telling parents about a school trip|thanking volunteers after a beach cleaning|
asking an author about a character in a novel|asking a farmer whether a class may visit|
returning a pair of boots that do not fit|asking for a refund for a cancelled concert|
inviting a speaker to a science evening|telling a pen friend about a first snowfall|
asking a friend to feed two cats|confirming a table for twelve guests|asking a jeweller to repair a watch|
offering help with an overgrown garden|suggesting a chess evening to colleagues|explaining a delay to a customer|
telling an uncle how the tomato plants are doing|asking an employer for a free afternoon|
telling the neighbourhood about a lost tortoise|asking a photographer about prices for a wedding|
thanking a teacher at the end of a course|telling a friend why a visit must wait|
asking a stranger to send back a swapped suitcase
""")
TALES = split("""
a clockmaker who loses an hour|a lighthouse keeper who finds a message in a bottle|
a badger that wants to learn to read|a baker whose bread sings|a snail that enters a race|a girl who befriends a cloud|
a postman who delivers a letter forty years late|a robot that plants a garden|a boy who finds a door in a tree|
a kitten that takes the train alone|a mapmaker who draws an island that did not exist|a town where nobody can whistle|
a dragon that is afraid of the dark|an old boat that wants to sail once more|a tailor who sews a coat out of fog|
a pair of twins who swap places for a day|a librarian who hears the books whisper|a mouse that lives in a piano|
a gardener who grows a glass flower|a scarecrow that makes friends with crows|a violin that plays only at night|
a kite that escapes|a grandfather who builds a rocket|a hedgehog that cannot sleep in winter|
a painter whose pictures come alive|a village that moves up a mountain|a ferryman who never asks for money|
a snowman who travels south|a detective who searches for a missing spoon|a ghost that is tired of old houses|
a whale that collects lost umbrellas|a king who wants to be a cook|a shepherd who counts stars|
an astronaut who misses the rain|a dog that inherits a bookshop|a night watchman in a museum of toys|
a lost mitten that finds its way home|a magician who forgets one spell|a tortoise that keeps a secret|
a beekeeper who speaks to her hives|two rivals in a pie contest|a street lamp that falls in love with the moon|
a captain who is afraid of water|a traveller who trades a button for a castle|a stone that remembers the sea|
a juggler who drops a star|a carpenter who builds a chair for a giant|a photographer who takes a picture of tomorrow|
a parrot that knows a riddle|a child who hears what trees say|a train that stops in a forest at midnight|
a cook who runs out of salt|an inventor whose machine makes only bubbles|a sleepy bear in a hotel
""")
POSTS = split("""
a first week of riding a bicycle to work|a weekend without a mobile phone|a visit to a cheese dairy|
lessons from a burnt cake|the joy of second-hand books|a rainy day at the seaside|a month of cooking nothing but soup|
moving to a smaller flat|an unexpected hobby|the new bakery next door|a balcony turned into a vegetable garden|
a night under the stars|a swim in a cold lake|a family recipe for dumplings|mornings with a rescue dog|
a marathon of board games|the best bench in town|an evening class in pottery|a long train ride through the mountains|
repairing an old radio|a day as a helper at an animal park|growing mushrooms in the cellar|a wardrobe of thirty pieces|
the sound of a city at night|the end of a knitting project|a walk along a disused railway line|
learning the ukulele at sixty|a tiny library in a phone box|a garden visited by hedgehogs|a picnic that went wrong|
good uses for stale bread|reading aloud to children|a favourite mug with a broken handle|
a summer job at an ice cream stand|homemade lemonade|an old photo found in a drawer|a lunch break in the park|
a holiday at home|a street without cars for a day|letters from a pen friend|a desk by the window|
bringing plants through the winter|a flea market find|an attempt to bake croissants|a concert in a living room|
the opening of a repair cafe|a birthday in the snow|a jigsaw with two thousand pieces|
mistakes made while painting a kitchen|a visit from a swarm of bees|building a treehouse with a neighbour|
sketching strangers on the tram|a bus ride to the last stop
""")
DISHES = split("""
lentil soup|pancakes|tomato salad|banana bread|vegetable curry|mushroom risotto|apple crumble|potato gratin|fried rice|
pumpkin soup|spinach quiche|carrot cake|onion soup|stuffed peppers|rice pudding|bean chilli|cheese omelette|
cucumber salad|garlic bread|lemon tart|noodle soup|chickpea stew|roasted cauliflower|corn fritters|oat biscuits|
plum cake|pasta with pesto|cabbage rolls|blueberry muffins|potato dumplings|couscous salad|fish pie|baked apples|
hummus|beetroot soup|cinnamon rolls|egg sandwiches|aubergine lasagne|fruit salad|hot chocolate|strawberry jam|
leek tart|courgette fritters|pea soup
""")
GOALS = split("""
learning to juggle in two weeks|reading twenty books in a year|running five kilometres by the summer|
clearing out a garage in a weekend|writing a novel in a year|saving for a trip to the coast|
learning a hundred words of Italian|turning a bare yard into a garden|opening a stall at a craft market|
painting a flat in three days|staging a school play|walking a long coastal path|
cooking at home every evening for a month|learning to swim before the holidays|building a raised bed in a day|
organising a village fair|holding a street party in June|starting a neighbourhood choir|
setting up a book swap at the office|learning the names of fifty birds|making a family photo album|
scanning a box of old photos|restoring a rusty bicycle|preparing a talk on volcanoes|learning ten songs on the ukulele|
moving to another town in a month|using less plastic at home|growing all the salad for a summer|
waking at six every morning|typing without looking at the keys|furnishing a room on a small budget|
launching a podcast about birds|hosting a dinner for ten|camping with three children for a week|
knitting a jumper before winter|making a film with friends|drawing every day for a month|
completing a jigsaw of five thousand pieces|running a lemonade stand|mapping the trees of a park|
planting an orchard over five years|visiting every museum of a city|learning to bake bread in four weekends|
crossing a country by train
""")
IDEAS = SKILLS + GOALS
ROLES = split("""
a museum guide: which room to see first on a rainy visit|a lighthouse keeper: how the lamp is kept lit in a storm|
a baker: when to buy the freshest bread and rolls|a train driver: what the signals along the track mean|
a beekeeper: how to move calmly among the hives|a zoo keeper: which fish the penguins like to eat|
a librarian: where to find books about the sea|a tailor: which cloth suits a summer jacket|
a gardener: when to plant tulip bulbs|a captain: how to steer a ship through mist and fog|
a mountain guide: which clothes and food to pack for a walk to the hut|a clockmaker: why an old clock runs slow|
a pirate with good manners: where the treasure is hidden|
a hotel receptionist: where to have breakfast and coffee nearby|an astronomer: which stars can be seen tonight|
a carpenter: which wood is best for a table|a cheese seller: which cheese goes with pears|
a medieval cook: which dishes are served at the feast|a polite robot: how to spend a rainy afternoon indoors|
a weather presenter: whether the weekend will bring rain or sunshine|
a tour guide on Mars: what there is to see besides red dust and rocks|
an orchestra conductor: what the baton tells the musicians|a wise old tree: what has changed in the forest|
a swimming teacher: how to float in deep water|a piano tuner: how often a piano needs tuning|
a park ranger: which animals leave tracks by the river|a florist: which flowers to bring to a new neighbour|
a fisherman: how to tell that the weather is turning|a puppet maker: how a puppet gets its face|
a bookseller: which novel to give to a teenager|a talking cat: why cats sit on keyboards|
a stage magician: how long it takes to master a card trick|a ferry captain: when the last boat leaves
""")
REVIEWED = split("""
a folding bicycle with a wicker basket|a cafe on a river barge|an alarm clock that smells of coffee|
a hotel in a former windmill|a raincoat with eleven pockets|a museum of lost keys|a kettle that whistles a waltz|
a restaurant run by two grandmothers|a solar-powered desk lamp|a campsite beside a salt lake|
a board game about beekeeping|a backpack made from old sails|a cinema with hammocks|a saucepan that stirs by itself|
a bookshop with a slide|a pair of waterproof slippers|a night train with a dining car|
a pencil that never needs sharpening|a mountain hut with a piano|a toaster that prints the weather|
a botanical garden on a rooftop|a pillow filled with cherry stones|a bakery that opens at midnight|
a jigsaw of a cloudless sky|a travel guide to small islands|a garden chair for two|a tea shop in a railway carriage|
a cookbook about potatoes|a robot that waters plants|an ice cream parlour with savoury flavours|
a walking tour of hidden courtyards|a notebook with waterproof paper|a swimming pool inside an old brewery|
a scarf that changes colour
""")
TEXTS = split("""
The ferry to the island leaves at seven every morning. It carries the post, fresh bread and a handful of passengers. In
winter the crossing may be cancelled when the waves are too high, and then the islanders eat what is left in their
cupboards. Nobody complains much, because the next calm day always comes.|
Marta found an old tin box while digging in her garden. Inside lay a rusty key, three foreign coins and a faded
photograph of a house with a round window. She asked all the neighbours about it, but nobody knew the house. Now she
looks at every window when she goes for a walk.|
Beavers build dams from branches, stones and mud. The dam slows the stream down, and a pond forms behind it. In the
middle of the pond the animals build a lodge, whose entrance lies under water. That keeps foxes out and lets the family
swim home unseen.|
Our village bakery closed last spring after sixty years. For months people drove to the next town for their rolls. Then
two sisters rented the shop, repaired the old oven and began to bake again. On the first morning the queue reached as
far as the fountain, and by nine everything was sold.|
A sundial tells the time with the shadow of a rod. As the sun seems to cross the sky, the shadow moves over a plate
marked with the hours. The rod must point in the right direction, or the dial will be wrong. On cloudy days, of course,
it tells nothing at all.|
The school orchestra had practised for weeks when the lights went out in the middle of the concert. For a moment there
was silence. Then the youngest cellist went on playing from memory, and one after another the others joined her. The
audience said afterwards that it had never listened so closely.|
Cork comes from the bark of a kind of oak. Workers peel it off in summer, without felling the tree, and then wait nine
years until it has grown again. The bark is boiled, pressed flat and cut. What is left over becomes floor tiles and
notice boards.|
When the new bridge opened, the old ferryman lost his work. He sold tickets at the cinema for a while, but he missed
the river. In the end he painted his boat blue and offered trips at sunset. Today he has more passengers than in all
the years before the bridge.|
Tea grows on evergreen bushes in warm and rainy regions. Pickers take only the youngest leaves and the bud at the tip
of each shoot. Whether the tea becomes green or black depends on what happens next. Black tea is left to darken in the
air, while green tea is heated soon after picking.|
The town library now lends more than books. Members can borrow a drill, a sewing machine, a tent or a telescope for two
weeks. The idea came from a reader who needed a ladder only once a year. So far nothing has been lost, though a ukulele
came back with a new string.|
Camels can go for many days without drinking. Their humps hold fat rather than water, and they live on it when food is
scarce. Long lashes and nostrils that close protect them from blowing sand. Broad feet keep them from sinking into the
dunes.|
Every Thursday old Lindqvist takes his chess board to the park and waits on the same bench. Anyone may sit down and
play. He has lost to a bus driver, a pupil and a woman who had learned the rules that week. Losing, he says, is how he
meets people.|
Paper was once made mainly from rags. Collectors went from door to door for worn linen and cotton, which mills soaked
and beat to a pulp. The pulp was lifted out on a fine sieve, pressed and hung up to dry. Wood took the place of rags
only when the demand for paper had grown too large.|
The hikers had planned to reach the hut before dark. A fallen tree blocked the path, and the way around it cost them
two hours. When the moon rose they could see the roof far below, and a light in the window. The warden had kept soup
warm for them.|
Lichens look like plants, but each is a partnership of a fungus and an alga. The fungus gives shelter and holds water,
and the alga makes food from sunlight. Together they can live on bare rock where nothing else will grow. Many grow less
than a millimetre in a year.|
Jonas wanted to surprise his sister with a cake in the shape of a hedgehog. He used almonds for the spines and two
raisins for the eyes. In the warm kitchen the cream began to melt, and the hedgehog slowly became a turtle. His sister
had always liked turtles better.|
Canal locks let boats climb hills. A boat enters a chamber, the gates close behind it, and water flows in from above
until both levels are the same. Then the upper gates open and the boat goes on. No pump is needed, since the water runs
downhill by itself.|
The night bus is nearly empty after the last film. The driver knows most of the people who get on: a nurse, two cooks
and a student who always falls asleep. He wakes the student at the right stop. In return she brings him a bag of plums
from her parents' tree each August.|
Puffins spend most of their lives at sea and come ashore only to breed. They dig burrows in grassy cliffs and lay a
single egg. Parents bring back many small fish at once, lined up crosswise in the beak. After some weeks the young bird
walks to the edge by night and flies away.|
The clock on the town hall had been seven minutes fast for as long as anyone could remember. People caught their trains
because of it. When a new caretaker set it right, half the town was late for work the next morning. He climbed up again
that evening and put the seven minutes back.|
Rice is often grown in flooded fields. The standing water does the plants no harm, but it drowns many weeds. On
hillsides farmers build terraces with low walls, so that water can flow from one field down to the next. Before the
harvest the fields are drained and left to dry.|
A weather balloon carries a small box of instruments high into the air. On its way it reports temperature, moisture and
pressure by radio. The air grows thinner, the balloon swells, and at last it bursts. A parachute brings the box down,
and a label asks the finder to send it back.|
When Aunt Ilse moved, she gave away her piano on one condition: the new owner had to learn one waltz and play it to
her. A plumber took it and practised every evening for a winter. In spring he visited her with a keyboard under his
arm. She danced with the cat.|
Wooden pencils begin as thin boards of cedar. Grooves are cut into a board, leads of graphite and clay are laid in, and
a second board is glued on top. A machine then cuts the block into single pencils. The more clay a lead holds, the
harder and paler it writes.|
The market square is closed to cars from Friday noon until Sunday night. Traders set up their stalls on the north side,
and children may chalk on the rest of the paving. Residents can reach their garages from Mill Lane. The rule began as a
trial for one summer and has now lasted for eleven years.|
Salmon hatch in cold streams and swim down to the sea, where they grow for several years. When they are ready to spawn,
they return to the very stream in which they were born. Smell seems to guide them on the last part of the way. They
leap over rapids and low falls to get there.|
Nobody believed that the allotment by the railway would ever grow anything. Farida cleared the stones, filled old
bathtubs with compost and planted beans in them. The first crop was eaten by snails. The second fed three families and
won a prize at the autumn show.|
Felt is one of the oldest fabrics. Wool is laid out in thin layers, sprinkled with warm soapy water and rubbed until
the fibres cling together. No weaving or knitting is needed. Herders in cold grasslands still cover their round tents
with thick mats of it.|
The swimming pool in Birch Street will stay shut until the end of March. Its roof is being replaced, and the changing
rooms get new showers. Season tickets remain valid and are extended by ten weeks. Meanwhile the early swimmers meet at
the lake, where they are joined by a few surprised ducks.|
Two friends ran a small cinema above a bicycle shop. It had thirty seats, all of them different, and the projector
hummed louder than the films. One evening only a single guest came. They showed the film anyway, made popcorn for
three, and have been friends with the guest ever since.
""")
