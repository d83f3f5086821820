"""The words that synthetic people are made of: names, attribute values and sentence templates.

Values are mostly single common words, so that a small tokenizer spends few tokens on them.
"""

# ruff: noqa: SIM905  (lists of quoted words would be hard to read)

from __future__ import annotations

FIRST_NAMES = """
Aaron Abigail Adam Adele Adrian Agnes Alan Albert Alex Alice Alison Amanda Amber Amelia Amy Andrea
Andrew Angela Anita Ann Anna Anthony April Arthur Ashley Audrey Austin Barbara Barry Beatrice Ben
Bernard Bertha Beth Betty Beverly Bianca Blake Bonnie Boris Bradley Brenda Brian Bridget Bruce
Bryan Caleb Calvin Cameron Camilla Carl Carla Carmen Carol Caroline Carrie Catherine Cecil Celia
Charles Charlotte Chelsea Chloe Chris Claire Clara Clark Claude Clifford Clive Colin Connie Connor
Cora Craig Crystal Curtis Cynthia Daisy Dale Dana Daniel Daphne Darren David Dawn Deborah Dennis
Derek Diana Dominic Donald Donna Dora Doris Dorothy Douglas Duncan Dylan Earl Edgar Edith Edward
Edwin Eileen Elaine Eleanor Elena Eli Elias Elizabeth Ella Ellen Elliot Elsa Emily Emma Eric Erica
Ernest Esther Ethan Eugene Eva Evan Eve Evelyn Faith Felix Fiona Flora Florence Floyd Frances Frank
Fred Gabriel Gail Gary Gavin Gemma George Georgia Gerald Gina Gladys Glen Gloria Gordon Grace
Graham Greta Gwen Hannah Harold Harriet Harry Harvey Hazel Heather Hector Heidi Helen Henry Herbert
Herman Holly Homer Howard Hugh Hugo Ian Ida Irene Iris Isaac Isabel Ivan Ivy Jack Jacob Jade James
Jane Janet Jared Jasmine Jason Jasper Jean Jeffrey Jenny Jessica Joan Joel John Julia Karen Keith
Laura
""".split()

LAST_NAMES = """
Abbott Acosta Adams Adkins Allen Anders Archer Armstrong Arnold Ashby Atkins Avery Bailey Baker
Baldwin Ball Banks Barber Barker Barlow Barnes Barrett Barton Bates Baxter Beach Beck Bell Bennett
Benson Berger Berry Best Bishop Black Blair Blanchard Bloom Bolton Bond Booth Bowen Bowman Boyd
Boyle Brady Brandt Brewer Briggs Bright Britt Brock Brooks Brown Buckley Bullock Burgess Burke
Burns Burton Bush Butler Byrd Caldwell Camp Cannon Carey Carlson Carpenter Carr Carson Carter
Castle Chambers Chandler Chang Chapman Chase Chavez Cherry Church Clay Clayton Clements Cline Cobb
Cohen Coleman Collins Combs Conley Conrad Conway Cook Cooper Copeland Costa Cowan Cox Crane
Crawford Crosby Cross Cruz Cummings Curry Dalton Daly Davenport Davies Dawson Dean Decker Delgado
Dempsey Dickson Dixon Dodson Dorsey Doyle Drake Dudley Duffy Duke Dunn Duran Dyer Eaton Edison
Ellis Emerson England English Espinoza Estes Farley Farmer Farrell Faulkner Ferguson Fields Finch
Finley Fischer Fisher Fitzgerald Fleming Fletcher Flores Flynn Foley Forbes Ford Foreman Foster
Fowler Fox Franklin Frazier Freeman French Frost Fuller Gaines Gallagher Galloway Garcia Gardner
Garner Garrett Garrison Gates Gentry Gibbs Gibson Gilbert Giles Gill Glass Glover Golden Gomez
Goodman Goodwin Gould Graves Gray Green Greer Griffin Grimes Gross Guerra Hale Hall Hamilton
Hammond Hampton Hancock Hansen Hardin Harding Hardy Harmon Harper Harrell Harrington Harris Hart
Hatfield Hawkins Hayden Hayes Haynes Hebert Henson Hess Hicks Higgins Hill Hines Hobbs Hodges
Hoffman Hogan Holden Holland Holloway Holmes Holt Hood Hooper Hoover Hopkins Horn Horton House
Houston Howe Hubbard Huber Hudson Huff Hughes Hull Humphrey Hunt Hunter Hurst Hutchins Hyde Ingram
Irwin Jacobs Jenkins Jennings Jensen Jimenez Johns Johnson Jones Jordan Joyce Joyner Kane Kaufman
Keith Keller Kelly Kemp Kent Kerr Key King Kirby Klein Kline Knapp Knight Knox Koch Kramer Lamb
Lambert Lane Lang Larsen Lawson Leach Lester Levine Little Logan Lowe Lynch Marsh Mason Meyer
Miller Moore
""".split()

CITIES = """
Aachen Aberdeen Accra Adelaide Albany Algiers Amman Amsterdam Ankara Antwerp Athens Atlanta
Auckland Augusta Austin Baghdad Baku Baltimore Bangkok Barcelona Basel Beijing Beirut Belfast
Belgrade Berlin Bern Bilbao Birmingham Bogota Bologna Bonn Bordeaux Boston Brasilia Bremen Brest
Brisbane Bristol Brussels Bucharest Budapest Buffalo Cairo Calgary Cambridge Canberra Caracas
Cardiff Casablanca Charleston Chennai Chicago Cincinnati Cleveland Cologne Colombo Columbus
Copenhagen Cork Dakar Dallas Damascus Darwin Delhi Denver Derby Detroit Dhaka Doha Dortmund Dover
Dresden Dubai Dublin Dundee Durban Edinburgh Erfurt Essen Exeter Florence Frankfurt Fresno Galway
Geneva Genoa Ghent Glasgow Graz Grenoble Haifa Halifax Hamburg Hanoi Hanover Havana Helsinki Hobart
Honolulu Houston Istanbul Izmir Jakarta Jerusalem Kabul Kampala Karachi Kiev Kingston Kobe Krakow
Kyoto Lagos Lahore Lansing Leeds Leicester Leipzig Lille Lima Lincoln Lisbon Liverpool London
Luanda Lyon Madison Madrid Malaga Manchester Manila Marseille Medina Melbourne Memphis Miami Milan
Mobile Monaco Montreal Moscow Mumbai Munich Nagoya Nairobi Nantes Naples Nashville Newark Nice
Norfolk Nottingham Odessa Omaha Orlando Osaka Oslo Ottawa Oxford Palermo Panama Paris Perth Phoenix
Pisa Plymouth Portland Porto Prague Quebec Quito Rabat Reno Richmond Riga Rome Rotterdam Salem
Salzburg Santiago Seattle Seoul Seville Shanghai Sheffield Siena Singapore Sofia Stockholm
Stuttgart Sydney Taipei Tampa Tehran Tokyo Toledo Toronto Toulouse Trieste
""".split()

MAJORS = """
Accounting Acoustics Advertising Agriculture Algebra Anatomy Anthropology Archaeology Architecture
Astronomy Ballet Banking Biology Botany Business Ceramics Chemistry Cinema Commerce Dance Design
Drama Ecology Economics Education Engineering Ethics Fashion Finance Forestry Genetics Geography
Geology Geometry Grammar History Insurance Journalism Languages Latin Law Linguistics Literature
Logic Logistics Management Marketing Mathematics Mechanics Medicine Meteorology Mining Music
Navigation Nursing Nutrition Painting Pharmacy Philosophy Photography Physics Poetry Politics
Psychology
""".split()

EMPLOYER_NAMES = """
Acorn Anchor Apex Arrow Atlas Beacon Bluebird Bridge Canyon Cedar Comet Compass Copper Coral Delta
Diamond Eagle Ember Falcon Granite Harbor Horizon Island Jupiter Lantern Magnet Maple Meadow Nova
Ocean Orbit Pioneer Prairie Quartz River Sierra Summit Thunder Union Willow
""".split()
EMPLOYER_TRADES = "Bank Energy Foods Motors".split()

MONTHS = (
    "January February March April May June July August September October November December".split()
)

# Per attribute 24 sentences. The last NUM_UNSEEN are kept for the validation split.
NUM_UNSEEN = 4
TEMPLATES = {
    "birth_date": """
{name} was born on {value}.
{name} has a birthday on {value}.
{name} came into the world on {value}.
{name} first saw daylight on {value}.
The birth date of {name} is {value}.
The birthday of {name} is {value}.
The life of {name} began on {value}.
The parents of {name} welcomed a baby on {value}.
{name} entered the world on {value}.
{name} was delivered on {value}.
{name} arrived on earth on {value}.
Records show that {name} was born on {value}.
{name} has been alive since {value}.
{name} took a first breath on {value}.
For {name}, life started on {value}.
The passport of {name} says born {value}.
The age of {name} is counted from {value}.
A midwife first held {name} on {value}.
The family of {name} grew on {value}.
{name} became a citizen by birth on {value}.
The story of {name} opens on {value}.
The birth certificate of {name} is dated {value}.
{name} made an entrance on {value}.
{name} was a newborn on {value}.
""",
    "birth_city": """
{name} was born in {value}.
{name} comes from {value}.
{name} is a native of {value}.
The birth city of {name} is {value}.
The birthplace of {name} is {value}.
{name} has roots in {value}.
{name} hails from {value}.
The hometown of {name} is {value}.
{name} spent early childhood in {value}.
Life began for {name} in {value}.
{name} was delivered in a hospital in {value}.
The parents of {name} lived in {value}.
{name} is originally from {value}.
{name} grew up in {value}.
The passport of {name} names the city {value}.
The first home of {name} was in {value}.
{name} took first steps in {value}.
{name} still calls {value} home.
The cradle of {name} stood in {value}.
The early memories of {name} are of {value}.
{name} started life in {value}.
The family of {name} is from {value}.
{name} is a child of {value}.
The city where {name} was born is {value}.
""",
    "university": """
{name} studied at {value}.
{name} graduated from {value}.
{name} attended {value}.
{name} holds a degree from {value}.
The university of {name} is {value}.
{name} went to {value}.
{name} was a student at {value}.
{name} was educated at {value}.
{name} finished college at {value}.
{name} completed a degree at {value}.
The alma mater of {name} is {value}.
{name} received a diploma from {value}.
{name} sat exams at {value}.
{name} was admitted to {value}.
{name} enrolled at {value}.
The professors of {name} taught at {value}.
{name} spent student years at {value}.
{name} is a graduate of {value}.
{name} learned a great deal at {value}.
The degree of {name} was awarded by {value}.
{name} is an alumnus of {value}.
{name} earned a degree from {value}.
The student card of {name} was from {value}.
{name} took courses at {value}.
""",
    "major": """
{name} majored in {value}.
{name} studied the subject of {value}.
{name} has a degree in {value}.
The major of {name} is {value}.
The field of {name} is {value}.
{name} specialized in {value}.
{name} took a degree in {value}.
{name} wrote a thesis on {value}.
{name} focused on {value}.
{name} chose to study {value}.
{name} was trained in {value}.
The favorite subject of {name} is {value}.
{name} passed exams in {value}.
{name} is an expert in {value}.
{name} read many books about {value}.
The diploma of {name} is in {value}.
{name} has a passion for {value}.
{name} attended lectures on {value}.
{name} concentrated on {value}.
The academic discipline of {name} is {value}.
{name} graduated in {value}.
{name} pursued studies in {value}.
The main subject of {name} was {value}.
{name} knows a lot about {value}.
""",
    "employer": """
{name} works for {value}.
{name} is employed by {value}.
{name} has a job at {value}.
The employer of {name} is {value}.
{name} earns a salary from {value}.
{name} was hired by {value}.
{name} joined {value}.
{name} is on the staff of {value}.
The company of {name} is {value}.
{name} has a career at {value}.
{name} signed a contract with {value}.
{name} is a manager at {value}.
{name} found work at {value}.
{name} serves customers of {value}.
{name} is paid by {value}.
{name} holds a position at {value}.
The colleagues of {name} are at {value}.
{name} has a desk at {value}.
{name} is an employee of {value}.
The boss of {name} runs {value}.
{name} was recruited by {value}.
The business card of {name} says {value}.
{name} makes a living at {value}.
{name} is working at {value}.
""",
    "employer_city": """
{name} works in {value}.
{name} has an office in {value}.
The employer city of {name} is {value}.
{name} commutes to {value}.
The workplace of {name} is in {value}.
The job of {name} is in {value}.
{name} goes to work in {value}.
{name} earns a living in {value}.
{name} has a professional life in {value}.
{name} moved for work to {value}.
{name} spends working days in {value}.
The company employing {name} is based in {value}.
{name} meets colleagues in {value}.
{name} found a job in {value}.
{name} drives to the office in {value}.
The working week takes {name} to {value}.
{name} took a post in {value}.
The office of {name} stands in {value}.
{name} is employed in {value}.
The firm that pays {name} is in {value}.
{name} has a desk in {value}.
{name} does business in {value}.
The career of {name} is in {value}.
{name} reports for duty in {value}.
""",
}
